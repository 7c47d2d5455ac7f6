"""From ``models/finetuned`` to figures one can believe and a model that can be served.

``predictions.parquet`` is written first; every metric, table and picture is computed from it.
Temperature and threshold come from val, reported figures from holdout.
"""

from collections.abc import Mapping
from logging import Logger
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from src import paths
from src.data.identity import check_trained_here, split_kind
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

    from src.data.labelled import LabelledPatches
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
    report = report_of(predictions, operating_point, params.evaluate)
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
    write_report(params.evaluate, log)
    log_to_run(report, figures, log)
    say(report, log)


def load_model(params: Params) -> "keras.Model":
    """Start TensorFlow and load the verified ``models/finetuned``."""
    from src.model.inference import load_classifier

    start(params.runtime)
    return load_classifier(paths.FINETUNED_MODEL)


def predict(model: "keras.Model", params: Params, log: Logger) -> "pd.DataFrame":
    """The table of ``src.evaluation.predictions``, with a temperature from val."""
    from src.data.labelled import load_split
    from src.data.packed import read_patches

    train, val, holdout = load_split("train"), load_split("val"), load_split("holdout")
    logits = [_view_logits(model, split, params, log) for split in (val, holdout)]
    histograms = [_histograms(split, log) for split in (train, val, holdout)]
    log.info(
        f"scored {len(val):,} val and {len(holdout):,} holdout patches in {len(logits[0])} "
        f"view{'s' if len(logits[0]) > 1 else ''}"
    )
    predictions = predictions_of(train, (val, holdout), logits=logits, histograms=histograms)
    return with_origins(predictions, read_patches(paths.INGEST), seed=params.evaluate.seed)


def _view_logits(
    model: "keras.Model", split: "LabelledPatches", params: Params, log: Logger
) -> NDArray[np.float64]:
    """(views, n) logits, all finite; one view without ``evaluate.tta``.

    By the graph of ``models/final`` up to the mean over the views.
    """
    from src.model.inference import predict_outputs
    from src.model.tta import view_logits

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
) -> "pd.DataFrame":
    """The table of :func:`predict` from what was computed of the pixels, without origins.

    ``scored_splits`` are val and holdout; ``logits`` belong to them, (views, n) each, and
    ``histograms`` to train, val and holdout. The temperature is fitted on val, the baseline on
    train.
    """
    import pandas as pd

    from src.evaluation.baseline import baseline_probability, fit_baseline
    from src.evaluation.calibration import fit_temperature, probability

    baseline = fit_baseline(histograms[0], train.labels)
    means = [split_logits.mean(axis=0) for split_logits in logits]
    temperature = fit_temperature(scored_splits[0].labels, means[0])
    tables = [
        pd.DataFrame(
            {
                "id": split.ids,
                "split": split.split,
                "group": split.groups,
                "label": split.labels.astype(np.int8),
                "logit": mean,
                **({ONE_VIEW: split_logits[0]} if len(split_logits) > 1 else {}),
                "probability": probability(mean, temperature=temperature),
                "baseline_probability": baseline_probability(baseline, split_histograms),
            }
        )
        for split, split_logits, mean, split_histograms in zip(
            scored_splits, logits, means, histograms[1:], strict=True
        )
    ]
    return pd.concat(tables, ignore_index=True)


def with_origins(
    predictions: "pd.DataFrame", patches: "pd.DataFrame", *, seed: int
) -> "pd.DataFrame":
    """``predictions`` with slide, stain and SHA-256 of each patch, from ``patches.parquet``."""
    from src.data.stain_names import stain_names

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
    """Temperature and threshold from the val rows alone."""
    from src.evaluation.calibration import fit_temperature
    from src.evaluation.operating_point import OperatingPoint, choose_threshold

    val = rows_of(predictions, "val")
    rule = params.operating_point.as_rule()
    return OperatingPoint(
        rule=rule,
        threshold=choose_threshold(rule, val["label"], val["probability"]),
        temperature=fit_temperature(val["label"], val["logit"]),
        tta=params.tta,
    )


def report_of(
    predictions: "pd.DataFrame", operating_point: "OperatingPoint", params: EvaluateParams
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
        n_resamples=params.n_resamples,
        confidence=params.confidence,
        seed=params.seed,
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
        holdout,
        threshold=operating_point.threshold,
        n_resamples=params.n_resamples,
        confidence=params.confidence,
        seed=params.seed,
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
            probability(rows["logit"], temperature=1.0),
            patches.scores,
            temperature=operating_point.temperature,
        ),
    }


def write_final(model: "keras.Model", operating_point: "OperatingPoint") -> None:
    """Write ``models/final``: the calibrated classifier, how to decide, which patches it saw."""
    from src.model.final import CONTRACT, CONTRACT_FILE, probability_classifier
    from src.model.inference import MODEL_FILE
    from src.model.saving import save_model
    from src.model.tta import averaged_over_views

    seen = seen_patches()
    if operating_point.tta:
        model = averaged_over_views(model)
    calibrated = probability_classifier(model, temperature=operating_point.temperature)
    with replacing_folder(paths.FINAL_MODEL) as folder:
        save_model(calibrated, folder / MODEL_FILE)
        write_json(folder / "operating_point.json", operating_point.as_json())
        write_json(folder / CONTRACT_FILE, CONTRACT)
        for key, values in seen.items():
            (folder / f"seen_{key}.txt").write_text("\n".join(values) + "\n", encoding="utf-8")


def seen_patches() -> dict[str, list[str]]:
    """``ids`` of the train and val patches, and ``sha256`` of their pixels, both sorted.

    By their pixels they are known in another archive as well, under whatever id.
    """
    from src.data.labelled import load_split
    from src.data.packed import read_patches

    # val chose the epoch, the temperature and the threshold
    ids = np.concatenate([load_split(split).ids for split in ("train", "val")])
    patches = read_patches(paths.INGEST)
    pixels = patches.loc[(patches["subset"] == "train") & patches["id"].isin(ids), "sha256"]
    return {"ids": sorted(ids.tolist()), "sha256": sorted(set(pixels))}


def write_report(params: EvaluateParams, log: Logger) -> None:
    """Write ``reports/index.html`` and ``reports/model_card.md`` from what the stages wrote."""
    from src.evaluation.report import render_model_card, render_report
    from src.evaluation.report_files import read_sources

    sources = read_sources()
    page = render_report(sources, n_resamples=params.n_resamples, seed=params.seed)
    write_bytes(paths.REPORT, page.encode())
    write_bytes(paths.MODEL_CARD, render_model_card(sources).encode())
    log.info(f"report: {paths.REPORT.relative_to(paths.ROOT)}, {len(page) / 1e6:.1f} MB, offline")


def log_to_run(report: "Report", figures: "Mapping[str, Figure]", log: Logger) -> None:
    """Add metrics, pictures, page and card to the MLflow run that fine-tuned the model."""
    from src.tracking.run_files import add_files
    from src.tracking.runs import add_evaluation, ensure_run

    run_id = ensure_run(paths.FINETUNED_MODEL)
    tags = {name: str(report[name]).lower() for name in ("beats_baseline", "slide_disjoint")}
    tags["groups_are"] = report["groups_are"]
    add_evaluation(run_id, report, figures, tags)
    add_files(run_id, (paths.REPORT, paths.MODEL_CARD), "report")
    log.info(f"added metrics, pictures and report to MLflow run {run_id}")


def say(report: "Report", log: Logger) -> None:
    """One line of log per fact, the verdict last."""
    from src.evaluation.calibration import at_bound
    from src.evaluation.intervals import FEW_GROUPS
    from src.evaluation.metrics_report import verdict

    point, n_groups = report["operating_point"], report["holdout"]["n_groups"]
    log.info(
        f"from val: temperature {point['temperature']:.3f}, threshold {point['threshold']:.4f}"
    )
    if at_bound(point["temperature"]):
        log.warning("the temperature ran into its bound: the logits tell nothing of val")
    for name, reason in report["undefined"].items():
        log.warning(f"{name} left out: {reason}")
    if n_groups < FEW_GROUPS:
        log.warning(
            f"{n_groups} groups in holdout, fewer than {FEW_GROUPS}: intervals are too narrow"
        )
    if not report["slide_disjoint"]:
        log.warning(
            f"scores are optimistic: the split is not by slide, its groups are "
            f"{report['groups_are']}"
        )
    log.info(verdict(report))


def _interval(values: dict[str, Any], name: str) -> Any:
    from src.evaluation.intervals import Interval

    return Interval(values[name], values[f"{name}_low"], values[f"{name}_high"])


if __name__ == "__main__":
    run(main)
