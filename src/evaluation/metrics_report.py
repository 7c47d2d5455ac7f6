"""``metrics.json`` as a pure function of ``predictions.parquet``.

Reported figures come from holdout; val stands beside them for comparison only.
"""

from typing import TYPE_CHECKING, Any

import numpy as np

from src.evaluation.intervals import Difference, Resampled, resample
from src.evaluation.metrics import METRICS, Scored, UndefinedMetric, auroc, scored
from src.evaluation.operating_point import OperatingPoint

if TYPE_CHECKING:
    import pandas as pd

Report = dict[str, Any]

_BASELINE = "baseline_auroc"


def metrics_report(
    predictions: "pd.DataFrame",
    operating_point: OperatingPoint,
    *,
    slide_disjoint: bool,
    groups_are: str,
    n_resamples: int,
    confidence: float,
    seed: int,
) -> Report:
    """Every metric of val and holdout, with intervals on holdout, beside the colour baseline.

    ``predictions`` has columns split, group, label, probability, baseline_probability. ``x_low``
    and ``x_high`` bound ``x``. A metric or an interval that is undefined is left out, and named
    with its reason in ``undefined``; nothing is NaN.

    Raises
    ------
    UndefinedMetric
        AUROC on holdout, or its interval, is undefined: the report would have no verdict.
    """
    holdout, val = _rows(predictions, "holdout"), _rows(predictions, "val")
    model = scored(holdout["label"], holdout["probability"], threshold=operating_point.threshold)
    baseline = scored(holdout["label"], holdout["baseline_probability"])
    aurocs = auroc.of(model), auroc.of(baseline)
    resampled = resample(
        {name: metric.statistic(model) for name, metric in METRICS.items()}
        | {_BASELINE: auroc.statistic(baseline)},
        holdout["label"],
        holdout["group"],
        n_resamples=n_resamples,
        rng=np.random.default_rng(seed),
    )
    undefined: dict[str, str] = {}
    difference = Difference(
        aurocs[0] - aurocs[1],
        *resampled.difference_bounds("auroc", _BASELINE, confidence=confidence),
    )
    low, high = resampled.bounds(_BASELINE, confidence=confidence)
    return {
        "holdout": _counts(holdout)
        | _values(model, "holdout", undefined)
        | _bounds(resampled, confidence, "holdout", undefined),
        "val": _counts(val)
        | _values(
            scored(val["label"], val["probability"], threshold=operating_point.threshold),
            "val",
            undefined,
        ),
        "baseline": {"auroc": aurocs[1], "auroc_low": low, "auroc_high": high},
        "difference_to_baseline": {
            "auroc": difference.value,
            "auroc_low": difference.low,
            "auroc_high": difference.high,
        },
        "beats_baseline": difference.above_zero,
        "slide_disjoint": slide_disjoint,
        "groups_are": groups_are,
        "operating_point": {
            "threshold": operating_point.threshold,
            "temperature": operating_point.temperature,
            **operating_point.rule,
        },
        "bootstrap": {
            "confidence": confidence,
            "n_resamples": n_resamples,
            "n_redrawn": resampled.n_redrawn,
        },
        "undefined": undefined,
    }


def verdict(report: Report) -> str:
    """The report in one line."""
    holdout, baseline = report["holdout"], report["baseline"]
    difference = report["difference_to_baseline"]
    beats = "beats" if report["beats_baseline"] else "does not beat"
    return (
        f"holdout AUROC {holdout['auroc']:.3f} ({100 * report['bootstrap']['confidence']:g} % "
        f"{holdout['auroc_low']:.2f} to {holdout['auroc_high']:.2f}, "
        f"{holdout['n_patches']:,} patches, {holdout['n_groups']:,} groups); "
        f"colour baseline {baseline['auroc']:.3f}; difference {difference['auroc']:+.3f} "
        f"({difference['auroc_low']:.2f} to {difference['auroc_high']:.2f}): {beats} the baseline"
    )


def _rows(predictions: "pd.DataFrame", split: str) -> "pd.DataFrame":
    return predictions[predictions["split"] == split]


def _counts(rows: "pd.DataFrame") -> dict[str, int]:
    return {
        "n_patches": len(rows),
        "n_tumour": int(rows["label"].sum()),
        "n_groups": int(rows["group"].nunique()),
    }


def _values(patches: Scored, split: str, undefined: dict[str, str]) -> dict[str, float]:
    values = {}
    for name, metric in METRICS.items():
        try:
            values[name] = metric.of(patches)
        except UndefinedMetric as error:
            undefined[f"{split}.{name}"] = str(error)
    return values


def _bounds(
    resampled: Resampled, confidence: float, split: str, undefined: dict[str, str]
) -> dict[str, float]:
    bounds: dict[str, float] = {}
    for name, metric in METRICS.items():
        if not metric.has_interval or f"{split}.{name}" in undefined:
            continue
        try:
            low, high = resampled.bounds(name, confidence=confidence)
        except UndefinedMetric as error:
            undefined[f"{split}.{name}_low"] = str(error)
        else:
            bounds |= {f"{name}_low": low, f"{name}_high": high}
    return bounds
