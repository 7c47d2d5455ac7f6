"""From ``models/finetuned`` to figures one can believe and a model that can be served.

``predictions.parquet`` is written first; every metric, table and picture is computed from it.
Calibration and threshold come from val, reported figures from holdout.
"""

from collections.abc import Mapping
from logging import Logger
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from src import paths
from src.data.dataset import check_trained_here, split_kind
from src.evaluation.predictions import ONE_VIEW, rows_of
from src.explanation import write_gallery
from src.params import EvaluateParams, Params, load_params
from src.scoring import finite, start
from src.system.cli import run
from src.system.durable import read_json, replacing_folder, write_bytes, write_json
from src.system.log import configure, get_logger

if TYPE_CHECKING:
    import keras
    import pandas as pd
    from matplotlib.figure import Figure

    from src.data.dataset import LabelledPatches
    from src.evaluation.looks import Look
    from src.evaluation.metrics_report import Report
    from src.evaluation.operating_point import OperatingPoint


def main() -> None:
    """Score val and holdout beside a colour baseline; calibrate, report, write models/final."""
    params = load_params()
    configure(params.runtime.verbosity)
    log = get_logger("evaluate")
    check_trained_here(paths.HEAD_MODEL, paths.FINETUNED_MODEL)
    model = load_model(params)
    write_predictions(predict(model, params, log))
    predictions = read_predictions()
    operating_point = operating_point_on_val(predictions, params.evaluate)
    run_id = run_of_the_model()
    look = look_at_holdout(run_id, predictions, tta=params.evaluate.tta)
    report = report_of(predictions, operating_point, look, params.evaluate)
    write_json(paths.METRICS, report)
    figures = pictures(predictions, operating_point, report)
    write_plots(predictions, operating_point, figures, params.evaluate)
    write_gallery(
        model,
        rows_of(predictions, "holdout"),
        threshold=operating_point.threshold,
        seed=params.evaluate.seed,
        log=log,
    )
    write_final(model, operating_point)
    write_report(log)
    log_to_run(run_id, report, figures, log)
    say(report, log)


def load_model(params: Params) -> "keras.Model":
    """Start TensorFlow and load the verified ``models/finetuned``."""
    from src.model.inference import load_classifier

    start(params.runtime)
    return load_classifier(paths.FINETUNED_MODEL)


def predict(model: "keras.Model", params: Params, log: Logger) -> "pd.DataFrame":
    """The table of ``src.evaluation.predictions``, calibrated on val."""
    from src.data.dataset import load_split
    from src.data.patches import read_patches

    train, val, holdout = load_split("train"), load_split("val"), load_split("holdout")
    logits = [_view_logits(model, split, params, log) for split in (val, holdout)]
    histograms = [_histograms(split, log) for split in (train, val, holdout)]
    log.info(
        f"scored {len(val):,} val and {len(holdout):,} holdout patches in {len(logits[0])} "
        f"view{'s' if len(logits[0]) > 1 else ''}"
    )
    predictions = predictions_of(
        train,
        (val, holdout),
        logits=logits,
        histograms=histograms,
        seed=params.evaluate.seed,
    )
    return with_origins(predictions, read_patches(paths.INGEST), seed=params.evaluate.seed)


def _view_logits(
    model: "keras.Model", split: "LabelledPatches", params: Params, log: Logger
) -> NDArray[np.float64]:
    """(views, n) logits, all finite; one view without ``evaluate.tta``.

    By the graph of ``models/final`` up to the mean over the views.
    """
    from src.model.inference import predict_outputs, view_logits

    logits = predict_outputs(
        view_logits(model) if params.evaluate.tta else model,
        split.pixels,
        split.rows,
        batch_size=params.runtime.inference_batch_size,
        log=log,
        task=f"{split.split}: scored",
    )
    finite(logits.ravel(), f"models/finetuned, asked about {split.split},")
    return np.atleast_2d(logits.T)


def predictions_of(
    train: "LabelledPatches",
    scored_splits: "tuple[LabelledPatches, LabelledPatches]",
    *,
    logits: list[NDArray[np.float64]],
    histograms: list[NDArray[np.float32]],
    seed: int,
) -> "pd.DataFrame":
    """The table of :func:`predict` from what was computed of the pixels, without origins.

    ``scored_splits`` are val and holdout; ``logits`` belong to them, (views, n) each, and
    ``histograms`` to train, val and holdout. Calibration is fitted on val, the
    baselines on train; which of them is the floor is chosen on val.
    """
    import pandas as pd

    from src.evaluation.baseline import baseline_probability, fit_baselines, stronger
    from src.evaluation.calibration import fit_calibration, probability

    baselines = fit_baselines(histograms[0], train.labels, seed=seed)
    means = [split_logits.mean(axis=0) for split_logits in logits]
    calibration = fit_calibration(scored_splits[0].labels, means[0])
    tables = [
        pd.DataFrame(
            {
                "id": split.ids,
                "split": split.split,
                "group": split.groups,
                "label": split.labels.astype(np.int8),
                "logit": mean,
                **({ONE_VIEW: split_logits[0]} if len(split_logits) > 1 else {}),
                "probability": probability(mean, **calibration._asdict()),
                **{
                    name: baseline_probability(model, split_histograms)
                    for name, model in baselines.items()
                },
            }
        )
        for split, split_logits, mean, split_histograms in zip(
            scored_splits, logits, means, histograms[1:], strict=True
        )
    ]
    predictions = pd.concat(tables, ignore_index=True)
    return predictions.assign(baseline_probability=predictions[stronger(tables[0])])


def with_origins(
    predictions: "pd.DataFrame", patches: "pd.DataFrame", *, seed: int
) -> "pd.DataFrame":
    """``predictions`` with slide, stain and SHA-256 of each patch, from ``patches.parquet``."""
    from src.data.groups import stain_names

    labelled = patches[patches["subset"] == "train"]
    origins = labelled[["id", "slide", "sha256"]].assign(stain=stain_names(labelled, seed=seed))
    return predictions.merge(origins, on="id", how="left", validate="one_to_one")


def _histograms(patches: "LabelledPatches", log: Logger) -> NDArray[np.float32]:
    from src.evaluation.baseline import colour_histograms
    from src.system.progress import progress

    with progress(f"{patches.split}: histograms", len(patches), "patches", log) as advance:
        return colour_histograms(patches.pixels, patches.rows, advance=advance)


def write_predictions(predictions: "pd.DataFrame") -> None:
    """Write ``reports/evaluate`` with its manifest."""
    with replacing_folder(paths.EVALUATE) as folder:
        predictions.to_parquet(folder / paths.PREDICTIONS.name, index=False)


def read_predictions() -> "pd.DataFrame":
    """All rows of ``predictions.parquet``."""
    import pandas as pd

    return pd.read_parquet(paths.PREDICTIONS)


def operating_point_on_val(predictions: "pd.DataFrame", params: EvaluateParams) -> "OperatingPoint":
    """Calibration and threshold from the val rows alone."""
    from src.evaluation.calibration import fit_calibration
    from src.evaluation.operating_point import OperatingPoint, choose_threshold

    val = rows_of(predictions, "val")
    rule = params.operating_point.as_rule()
    return OperatingPoint(
        rule=rule,
        threshold=choose_threshold(rule, val["label"], val["probability"]),
        **fit_calibration(val["label"], val["logit"])._asdict(),
        tta=params.tta,
    )


def run_of_the_model() -> str:
    """The MLflow run that fine-tuned the model, logged anew where the store has lost it."""
    from src.tracking.runs import ensure_run

    return ensure_run(paths.FINETUNED_MODEL)


def look_at_holdout(run_id: str, predictions: "pd.DataFrame", *, tta: bool) -> "Look":
    """Which of the models judged on this holdout this one is; noted before anything is shown."""
    from src.deciding import final_weights_sha256, model_key
    from src.evaluation.looks import Look, holdout_sha256
    from src.tracking.looks import take_look

    digest = holdout_sha256(rows_of(predictions, "holdout"))
    number = take_look(run_id, digest, model_key(final_weights_sha256(), tta=tta))
    return Look(number, digest)


def report_of(
    predictions: "pd.DataFrame",
    operating_point: "OperatingPoint",
    look: "Look",
    params: EvaluateParams,
) -> "Report":
    """The content of ``metrics.json``."""
    from src.evaluation.metrics_report import metrics_report
    from src.evaluation.operating_point import choose_threshold

    val = rows_of(predictions, "val")
    return metrics_report(
        predictions,
        operating_point,
        baseline_threshold=choose_threshold(
            operating_point.rule, val["label"], val["baseline_probability"]
        ),
        **split_kind()._asdict(),
        confidence=params.confidence,
        look=look,
    )


def write_plots(
    predictions: "pd.DataFrame",
    operating_point: "OperatingPoint",
    figures: "Mapping[str, Figure]",
    params: EvaluateParams,
) -> None:
    """Write ``reports/plots``: ``groups.csv``, a CSV for each plot of ``dvc plots``, pictures."""
    from src.evaluation.figures import learning_curves
    from src.evaluation.groups import group_table
    from src.evaluation.plots import plot_tables

    fits = [read_json(folder / "fit.json") for folder in (paths.HEAD_MODEL, paths.FINETUNED_MODEL)]
    holdout = rows_of(predictions, "holdout")
    tables = plot_tables(holdout, fits, threshold=operating_point.threshold)
    tables["groups"] = group_table(
        holdout, threshold=operating_point.threshold, confidence=params.confidence
    )
    drawn = {**figures, "learning_curves": learning_curves(*fits)}
    with replacing_folder(paths.PLOTS) as folder:
        for name, table in tables.items():
            table.to_csv(folder / f"{name}.csv", index=False)
        for name, figure in drawn.items():
            figure.savefig(folder / f"{name}.png")


def pictures(
    predictions: "pd.DataFrame", operating_point: "OperatingPoint", report: "Report"
) -> "dict[str, Figure]":
    """Pictures of the holdout rows, by name: roc, precision_recall, confusion, reliability."""
    from src.evaluation import figures
    from src.evaluation.calibration import probability
    from src.evaluation.metrics import scored

    rows = rows_of(predictions, "holdout")
    patches = scored(rows["label"], rows["probability"], threshold=operating_point.threshold)
    holdout = report["holdout"]
    return {
        "roc": figures.roc(
            patches,
            scored(rows["label"], rows["baseline_probability"]),
            auroc=_interval(holdout, "auroc"),
            baseline_auroc=report["baseline"]["auroc"],
        ),
        "precision_recall": figures.precision_recall(
            patches, average_precision=_interval(holdout, "average_precision")
        ),
        "confusion": figures.confusion(patches),
        "reliability": figures.reliability(
            rows["label"].to_numpy(),
            probability(rows["logit"]),
            patches.scores,
            scale=operating_point.scale,
            shift=operating_point.shift,
        ),
    }


def write_final(model: "keras.Model", operating_point: "OperatingPoint") -> None:
    """Write ``models/final``: the calibrated classifier, how to decide, which patches it saw."""
    from src.model.final import CONTRACT, CONTRACT_FILE, probability_classifier
    from src.model.inference import MODEL_FILE, averaged_over_views
    from src.model.saving import save_model

    seen = seen_in_training()
    if operating_point.tta:
        model = averaged_over_views(model)
    calibrated = probability_classifier(
        model, scale=operating_point.scale, shift=operating_point.shift
    )
    with replacing_folder(paths.FINAL_MODEL) as folder:
        save_model(calibrated, folder / MODEL_FILE)
        write_json(folder / "operating_point.json", operating_point.as_json())
        write_json(folder / CONTRACT_FILE, CONTRACT)
        for key, values in seen.items():
            (folder / f"seen_{key}.txt").write_text("\n".join(values) + "\n", encoding="utf-8")


def seen_in_training() -> dict[str, list[str]]:
    """``ids`` of the train and val patches, ``sha256`` of their pixels, names of their ``slides``.

    By pixels and slides they are known in another archive as well, under whatever id.
    """
    from src.data.dataset import load_split
    from src.data.patches import read_patches

    # val chose the epoch, the calibration and the threshold
    ids = np.concatenate([load_split(split).ids for split in ("train", "val")])
    patches = read_patches(paths.INGEST)
    seen = patches[(patches["subset"] == "train") & patches["id"].isin(ids)]
    return {
        "ids": sorted(seen["id"]),
        "sha256": sorted(set(seen["sha256"])),
        "slides": sorted(set(seen["slide"].dropna())),
    }


def write_report(log: Logger) -> None:
    """Write ``reports/index.html`` and ``reports/model_card.md`` from what the stages wrote."""
    from src.evaluation.report import render_model_card, render_report
    from src.evaluation.report_files import read_sources

    sources = read_sources()
    page = render_report(sources)
    write_bytes(paths.REPORT, page.encode())
    write_bytes(paths.MODEL_CARD, render_model_card(sources).encode())
    log.info(f"report: {paths.REPORT.relative_to(paths.ROOT)}, {len(page) / 1e6:.1f} MB, offline")


def log_to_run(run_id: str, report: "Report", figures: "Mapping[str, Figure]", log: Logger) -> None:
    """Add metrics, pictures, page and card to the MLflow run that fine-tuned the model."""
    from src.tracking.run_files import add_files
    from src.tracking.runs import add_evaluation

    against = report["against_baseline"]
    tags = {
        "beats_baseline": str(against["beats"]).lower(),
        "against_baseline": against["text"],
        "slide_disjoint": str(report["slide_disjoint"]).lower(),
        "groups_are": report["groups_are"],
    }
    add_evaluation(run_id, report, figures, tags)
    add_files(run_id, (paths.REPORT, paths.MODEL_CARD), "report")
    log.info(f"added metrics, pictures and report to MLflow run {run_id}")


def say(report: "Report", log: Logger) -> None:
    """One line of log per fact, the verdict last."""
    from src.evaluation.calibration import at_bound
    from src.evaluation.metrics_report import verdict

    point, look = report["operating_point"], report["look"]
    log.info(
        f"from val: scale {point['scale']:.3f}, shift {point['shift']:+.3f}, "
        f"threshold {point['threshold']:.4f}"
    )
    if at_bound(point["scale"]):
        log.warning("the scale ran into its bound: the logits tell nothing of val")
    for name, reason in report["undefined"].items():
        log.warning(f"{name} left out: {reason}")
    if look["number"] > 1:
        log.info(
            f"model {look['number']:,} judged on this holdout: the verdict is taken at "
            f"{100 * report['against_baseline'].get('confidence', 1):.4g} % confidence"
        )
    if not report["slide_disjoint"]:
        log.warning(
            f"scores are optimistic: the split is not by slide, its groups are "
            f"{report['groups_are']}"
        )
    log.info(verdict(report))


def _interval(values: dict[str, Any], name: str) -> Any:
    from src.evaluation.intervals import Interval

    bounds = (values.get(f"{name}_{end}", float("nan")) for end in ("low", "high"))
    return Interval(values[name], *bounds)


if __name__ == "__main__":
    run(main)
