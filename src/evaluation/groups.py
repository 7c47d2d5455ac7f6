"""How much the result hangs on single slides, groups and stains."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from src.evaluation.intervals import Jackknife
from src.evaluation.metrics import (
    Metric,
    Scored,
    UndefinedMetric,
    auroc,
    scored,
    sensitivity,
    specificity,
)

MIN_PATCHES = 20  # a smaller group says nothing on its own, and isn't listed


def group_table(rows: pd.DataFrame, *, threshold: float, confidence: float) -> pd.DataFrame:
    """One row a stain cluster and a slide (or, without slides, a group) of at least 20 patches.

    ``rows`` has columns label, probability, group, and stain, slide (both nullable). The result has
    kind, name, n_patches, n_tumour, n_groups, auroc, auroc_low, auroc_high, interval_over
    ("groups", or "patches" within one group), sensitivity, specificity, mean_probability,
    auroc_without (of all patches without these); NaN where one is undefined.
    """
    kinds = ("stain", "slide" if rows["slide"].notna().any() else "group")
    found = [
        {"kind": kind, "name": str(name), **_row(inside, threshold, confidence)}
        | {"auroc_without": _without(rows, inside, threshold)}
        for kind in kinds
        for name, inside in rows.groupby(kind)
        if len(inside) >= MIN_PATCHES
    ]
    return pd.DataFrame(found, columns=None if found else ["kind", "name"])


def _row(inside: pd.DataFrame, threshold: float, confidence: float) -> dict[str, Any]:
    patches = _scored(inside, threshold)
    low, high, over = _auroc_bounds(patches, inside["group"], confidence)
    return {
        "n_patches": len(inside),
        "n_tumour": int(patches.labels.sum()),
        "n_groups": int(inside["group"].nunique()),
        "auroc": _value(auroc, patches),
        "auroc_low": low,
        "auroc_high": high,
        "interval_over": over,
        "sensitivity": _value(sensitivity, patches),
        "specificity": _value(specificity, patches),
        "mean_probability": float(patches.probabilities.mean()),
    }


def _auroc_bounds(
    patches: Scored, groups: ArrayLike, confidence: float
) -> tuple[float, float, str]:
    """By groups; within a single group by patches; NaN where neither gives an interval."""
    over, members = "groups", np.asarray(groups)
    if len(np.unique(members)) == 1:
        over, members = "patches", np.arange(len(members))
    try:
        interval = Jackknife(patches.labels, members).interval(
            auroc.statistic(patches), confidence=confidence, scale="logit"
        )
    except UndefinedMetric:
        return np.nan, np.nan, ""
    return interval.low, interval.high, over


def _without(rows: pd.DataFrame, inside: pd.DataFrame, threshold: float) -> float:
    rest = rows.drop(inside.index)
    return _value(auroc, _scored(rest, threshold)) if len(rest) else np.nan


def _scored(rows: pd.DataFrame, threshold: float) -> Scored:
    return scored(rows["label"], rows["probability"], threshold=threshold)


def _value(metric: Metric, patches: Scored) -> float:
    try:
        return metric.of(patches)
    except UndefinedMetric:
        return np.nan
