"""The charts of the report."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from src.evaluation.bands import GRID, Band
from src.evaluation.calibration import probability, reliability_curve
from src.evaluation.curves import precision_recall_curve, roc_curve, thinned
from src.evaluation.metrics import N_BINS, bin_of, scored
from src.evaluation.report_files import Sources
from src.evaluation.svg import Chart

_MAX_POINTS = 400
_UNIT = (0.0, 1.0)
_HISTOGRAM_BINS = 40


def charts(sources: Sources, bands: Mapping[str, Band]) -> dict[str, str]:
    """SVG by name: roc, precision_recall, calibration, histogram."""
    return {
        "roc": _roc(sources, bands["roc"]),
        "precision_recall": _precision_recall(sources, bands["precision_recall"]),
        "calibration": _calibration(sources, bands["reliability"]),
        "histogram": _histogram(sources),
    }


def training_charts(fit: Mapping[str, Any]) -> dict[str, str]:
    """SVG of one phase by name: loss, auroc, rate."""
    epochs = [row["epoch"] for row in fit["history"]]
    x = (min(epochs) - 0.5, max(epochs) + 0.5)
    best = fit["best_epoch"]

    def chart(names: tuple[str, ...], label: str, *, log: bool = False) -> Chart:
        values = np.array([[row[name] for row in fit["history"]] for name in names], dtype=float)
        drawn = Chart(
            x,
            _range(values, log),
            "epoch",
            label,
            f"{label} of {fit['stage']} by epoch",
            log_y=log,
            whole_x=True,
        )
        drawn.vertical(best, "best")
        for css, series in zip(("model", "val"), values, strict=False):
            drawn.line(epochs, series, css)
            drawn.points(epochs, series, css)
        return drawn

    rates = [row["learning_rate"] for row in fit["history"]]
    return {
        "loss": chart(("loss", "val_loss"), "loss").render(),
        "auroc": chart(("val_auroc",), "AUROC on val").render(),
        "rate": chart(("learning_rate",), "learning rate", log=min(rates) > 0).render(),
    }


def _range(values: Any, log: bool) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    if log:
        return low / 1.6, high * 1.6
    room = max(high - low, 0.02 * abs(high), 1e-6) * 0.1
    return low - room, high + room


def _roc(sources: Sources, band: Band) -> str:
    holdout, metrics = sources.holdout, sources.metrics
    chart = Chart(
        _UNIT,
        _UNIT,
        "1 − specificity",
        "sensitivity",
        f"ROC curve on holdout, area {metrics['holdout']['auroc']:.3f}",
        name="roc",
    )
    chart.band(GRID, band.low, band.high, "model")
    chart.line(_UNIT, _UNIT, "chance")
    for column, css in (("baseline_probability", "baseline"), ("probability", "model")):
        patches = scored(holdout["label"], holdout[column])
        curve = roc_curve(patches.labels, patches.scores)
        chart.line(*thinned(*curve, max_points=_MAX_POINTS), css)
    point = metrics["holdout"]
    if "specificity" in point and "sensitivity" in point:
        chart.marker(1 - point["specificity"], point["sensitivity"])
    return chart.render()


def _precision_recall(sources: Sources, band: Band) -> str:
    patches = scored(sources.holdout["label"], sources.holdout["probability"])
    point = sources.metrics["holdout"]
    chart = Chart(
        _UNIT,
        _UNIT,
        "recall (sensitivity)",
        "precision (PPV)",
        f"Precision by recall on holdout, average {point['average_precision']:.3f}",
        name="precision-recall",
    )
    chart.band(GRID, band.low, band.high, "model")
    prevalence = float(patches.labels.mean())
    chart.line(_UNIT, (prevalence, prevalence), "chance")
    curve = precision_recall_curve(patches.labels, patches.scores)
    chart.line(*thinned(*curve, max_points=_MAX_POINTS), "model")
    if "ppv" in point:
        chart.marker(point["sensitivity"], point["ppv"])
    return chart.render()


def _calibration(sources: Sources, band: Band) -> str:
    holdout, metrics = sources.holdout, sources.metrics
    chart = Chart(
        _UNIT,
        _UNIT,
        "mean probability in the bin",
        "share of tumour in the bin",
        f"Calibration on holdout, ECE {metrics['holdout']['ece']:.3f}",
        name="calibration",
    )
    chart.line(_UNIT, _UNIT, "chance")
    before = reliability_curve(holdout["label"], probability(holdout["logit"]))
    after = reliability_curve(holdout["label"], holdout["probability"])
    held = np.bincount(bin_of(holdout["probability"].to_numpy()), minlength=N_BINS) > 0
    chart.line(before.mean_probability, before.tumour_share, "baseline")
    chart.bars(after.mean_probability, band.low[held], band.high[held], "model")
    chart.line(after.mean_probability, after.tumour_share, "model")
    sizes = 2 + 7 * np.sqrt(after.n_patches / after.n_patches.max())
    for x, y, size in zip(after.mean_probability, after.tumour_share, sizes, strict=True):
        chart.points([x], [y], "model", round(float(size), 1))
    return chart.render()


def _histogram(sources: Sources) -> str:
    labels = sources.holdout["label"].to_numpy(dtype=bool)
    probabilities = sources.holdout["probability"].to_numpy()
    edges = np.linspace(0, 1, _HISTOGRAM_BINS + 1)
    counts = {
        css: np.histogram(probabilities[labels == is_tumour], edges)[0]
        for css, is_tumour in (("normal", False), ("tumour", True))
    }
    highest = max(int(count.max()) for count in counts.values())
    chart = Chart(
        _UNIT,
        (0, 1.05 * highest),
        "probability of tumour",
        "patches",
        "Holdout patches by probability, tumour and normal",
        name="histogram",
    )
    for css, count in counts.items():
        chart.line(np.repeat(edges, 2)[1:-1], np.repeat(count, 2), css)
    chart.vertical(sources.metrics["operating_point"]["threshold"], "threshold")
    return chart.render()
