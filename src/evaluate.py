"""From ``models/finetuned`` to figures one can believe and a model that can be served.

``predictions.parquet`` is written first; every metric, table and picture is computed from it.
Calibration and threshold come from val, reported figures from holdout.
"""

from __future__ import annotations

from dataclasses import asdict
from functools import partial

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from src import paths
from src.data.dataset import check_trained_here, load_split, split_kind
from src.data.patches import read_patches
from src.evaluation.baseline import colour_histograms
from src.evaluation.calibration import fit_calibration
from src.evaluation.curves import curve_bands
from src.evaluation.figures import holdout_figures, learning_curves, plot_tables
from src.evaluation.gallery import write_gallery
from src.evaluation.looks import Look
from src.evaluation.metrics_report import Report, group_table, log_report, metrics_report
from src.evaluation.operating_point import OperatingPoint, choose_threshold
from src.evaluation.predictions import predictions_of, with_origins
from src.evaluation.report import render_model_card, render_report
from src.evaluation.report_facts import read_sources
from src.params import EvaluateParams, load_params
from src.system.cli import run
from src.system.determinism import start_scoring
from src.system.durable import read_json, replacing_folder, write_bytes, write_json
from src.system.log import configure, get_logger
from src.system.progress import progress


def main() -> None:
    """Score val and holdout beside a colour baseline; calibrate, report, write models/final."""
    params = load_params()
    chosen = params.evaluate
    configure(params.runtime.verbosity)
    log = get_logger("evaluate")
    check_trained_here(paths.HEAD_MODEL, paths.FINETUNED_MODEL)
    start_scoring(params.runtime)
    from src.model.final import write_final
    from src.model.gradcam import explain
    from src.model.inference import load_classifier, logits_by_view
    from src.model.scorer import finite
    from src.tracking.looks import archive_digest, final_weights_sha256, model_key, take_look
    from src.tracking.runs import add_evaluation, add_files, ensure_run

    # noted before a single holdout patch is scored: what was seen can't be unseen
    run_id, archive = ensure_run(paths.FINETUNED_MODEL), archive_digest()
    key = model_key(final_weights_sha256(), tta=chosen.tta)
    look = Look(take_look(run_id, archive, key), archive)

    # score
    model = load_classifier(paths.FINETUNED_MODEL)
    train, val, holdout = (load_split(name) for name in ("train", "val", "holdout"))
    logits = [
        logits_by_view(
            model,
            split,
            all_views=chosen.tta,
            batch_size=params.runtime.inference_batch_size,
            log=log,
        )
        for split in (val, holdout)
    ]
    for found in logits:
        finite(found.ravel(), "models/finetuned")
    histograms = []
    for split in (train, val, holdout):
        with progress(f"{split.split}: histograms", len(split), "patches", log) as advance:
            histograms.append(colour_histograms(split.pixels, split.rows, advance=advance))
    table = predictions_of(
        train, (val, holdout), logits=logits, histograms=histograms, seed=chosen.seed
    )
    predictions = write_predictions(with_origins(table, read_patches(paths.INGEST), chosen.seed))
    log.info(
        f"scored {len(val):,} val and {len(holdout):,} holdout patches in {len(logits[0])} "
        f"view{'s' if len(logits[0]) > 1 else ''}"
    )

    # decide on val, report on holdout
    point = operating_point_on_val(predictions, chosen)
    rows = predictions[predictions["split"] == "holdout"]
    report = report_of(predictions, point, look, chosen)
    write_json(paths.METRICS, report)
    figures = write_plots(rows, report)

    # the model as it is served, then pictures and pages, which need no model any more
    write_final(paths.FINAL_MODEL, model, asdict(point), seen_in_training())
    n_shown = write_gallery(
        paths.GALLERY,
        rows,
        holdout,
        explain=partial(explain, model),
        threshold=point.threshold,
        seed=chosen.seed,
    )
    log.info(f"explained {n_shown:,} holdout patches in reports/gallery")
    sources = read_sources()
    write_bytes(paths.REPORT, render_report(sources).encode())
    write_bytes(paths.MODEL_CARD, render_model_card(sources).encode())
    log.info(f"report: reports/index.html, {paths.REPORT.stat().st_size / 1e6:.1f} MB, offline")

    # log
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
    log_report(report, log)


def write_predictions(predictions: pd.DataFrame) -> pd.DataFrame:
    """Write ``reports/evaluate`` with its manifest; returns what any reader finds there."""
    with replacing_folder(paths.EVALUATE) as folder:
        predictions.to_parquet(folder / paths.PREDICTIONS.name, index=False)
    return pd.read_parquet(paths.PREDICTIONS)


def operating_point_on_val(predictions: pd.DataFrame, params: EvaluateParams) -> OperatingPoint:
    """Calibration and threshold from the val rows alone."""
    val = predictions[predictions["split"] == "val"]
    rule = params.operating_point.as_rule()
    return OperatingPoint(
        rule=rule,
        threshold=choose_threshold(rule, val["label"], val["probability"]),
        **fit_calibration(val["label"], val["logit"])._asdict(),
        tta=params.tta,
    )


def report_of(
    predictions: pd.DataFrame, point: OperatingPoint, look: Look, params: EvaluateParams
) -> Report:
    """The content of ``metrics.json``."""
    val = predictions[predictions["split"] == "val"]
    return metrics_report(
        predictions,
        point,
        baseline_threshold=choose_threshold(point.rule, val["label"], val["baseline_probability"]),
        **split_kind()._asdict(),
        confidence=params.confidence,
        look=look,
    )


def write_plots(holdout: pd.DataFrame, report: Report) -> dict[str, Figure]:
    """Write ``reports/plots``: ``groups.csv``, a CSV for each plot of ``dvc plots``, pictures.

    Returns the pictures of holdout.
    """
    threshold, confidence = report["operating_point"]["threshold"], report["confidence"]
    fits = [read_json(folder / "fit.json") for folder in (paths.HEAD_MODEL, paths.FINETUNED_MODEL)]
    tables = plot_tables(holdout, fits, threshold=threshold)
    tables["groups"] = group_table(holdout, threshold=threshold, confidence=confidence)
    bands = curve_bands(
        holdout["label"], holdout["probability"], holdout["group"], confidence=confidence
    )
    figures = holdout_figures(holdout, report, bands)
    with replacing_folder(paths.PLOTS) as folder:
        for name, table in tables.items():
            table.to_csv(folder / f"{name}.csv", index=False)
        for name, figure in {**figures, "learning_curves": learning_curves(*fits)}.items():
            figure.savefig(folder / f"{name}.png")
    return figures


def seen_in_training() -> dict[str, list[str]]:
    """``ids`` of the train and val patches, ``sha256`` of their pixels, names of their ``slides``.

    By pixels and slides they are known in another archive as well, under whatever id.
    """
    # val chose the epoch, the calibration and the threshold
    ids = np.concatenate([load_split(split).ids for split in ("train", "val")])
    patches = read_patches(paths.INGEST)
    seen = patches[(patches["subset"] == "train") & patches["id"].isin(ids)]
    return {
        "ids": sorted(seen["id"]),
        "sha256": sorted(set(seen["sha256"])),
        "slides": sorted(set(seen["slide"].dropna())),
    }


if __name__ == "__main__":
    run(main)
