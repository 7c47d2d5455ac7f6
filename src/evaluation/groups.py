"""How much the result hangs on single slides, groups and stains."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from src.evaluation.curves import Floats
from src.evaluation.delong import delong, placements
from src.evaluation.intervals import FEW_GROUPS, resample
from src.evaluation.metrics import (
    Metric,
    Scored,
    UndefinedMetric,
    auroc,
    scored,
    sensitivity,
    specificity,
)

if TYPE_CHECKING:
    import pandas as pd

MIN_PATCHES = 20  # a smaller group says nothing on its own, and isn't listed


@dataclass(frozen=True)
class LeaveOneOut:
    """AUROC with each group left out in turn.

    ``names`` (g,) and ``aurocs`` (g,), NaN where a class is missing without the group; ``whole`` is
    the AUROC of all patches.
    """

    names: list[str]
    aurocs: Floats
    whole: float

    @property
    def swing(self) -> float:
        """The largest change that leaving out one group makes."""
        return float(np.nanmax(np.abs(self.aurocs - self.whole)))

    @property
    def most_influential(self) -> str:
        """Name of that group."""
        return self.names[int(np.nanargmax(np.abs(self.aurocs - self.whole)))]


def leave_one_group_out(labels: ArrayLike, scores: ArrayLike, groups: ArrayLike) -> LeaveOneOut:
    """AUROC without each group, from one ranking: pairs of all, less those the group is part of.

    Raises
    ------
    UndefinedMetric
        One group only, AUROC of all is undefined, or it is without any group.
    """
    patches = scored(labels, scores)
    whole = auroc.of(patches)
    names, group_of = np.unique(np.asarray(groups), return_inverse=True)
    if len(names) < 2:
        raise UndefinedMetric("leaving out a group needs at least 2 groups; got 1")
    is_tumour = patches.labels
    n_tumour, n_normal = int(is_tumour.sum()), int((~is_tumour).sum())
    placed = placements(is_tumour, patches.scores)
    won = np.empty(len(is_tumour))  # pairs each patch is on the right side of, ties half
    won[is_tumour] = placed.tumour * n_normal
    won[~is_tumour] = placed.normal * n_tumour
    tumour_in = np.bincount(group_of, is_tumour, len(names))
    normal_in = np.bincount(group_of, ~is_tumour, len(names))
    kept = whole * n_tumour * n_normal - np.bincount(group_of, won, len(names))
    kept += _pairs_won_within(patches, group_of, tumour_in * normal_in)
    n_pairs = (n_tumour - tumour_in) * (n_normal - normal_in)
    without = np.divide(kept, n_pairs, out=np.full(len(names), np.nan), where=n_pairs > 0)
    if np.isnan(without).all():
        raise UndefinedMetric(f"without any one of the {len(names)} groups a class is missing")
    return LeaveOneOut([str(name) for name in names], without, whole)


def group_table(
    rows: "pd.DataFrame",
    *,
    threshold: float,
    n_resamples: int,
    confidence: float,
    seed: int,
) -> "pd.DataFrame":
    """One row a stain cluster and a slide (or, without slides, a group) of at least 20 patches.

    ``rows`` has columns label, probability, group, and stain, slide (both nullable). The result has
    kind, name, n_patches, n_tumour, n_groups, auroc, auroc_low, auroc_high, interval_over (groups
    or patches: DeLong), sensitivity, specificity, mean_probability, auroc_without (of all patches
    without these); NaN where one is undefined.
    """
    import pandas as pd

    kinds = ("stain", "slide" if rows["slide"].notna().any() else "group")
    settings = {"n_resamples": n_resamples, "confidence": confidence, "seed": seed}
    found = [
        {"kind": kind, "name": str(name), **_row(inside, threshold, settings)}
        | {"auroc_without": _without(rows, inside, threshold)}
        for kind in kinds
        for name, inside in rows.groupby(kind)
        if len(inside) >= MIN_PATCHES
    ]
    return pd.DataFrame(found, columns=None if found else ["kind", "name"])


def _row(inside: "pd.DataFrame", threshold: float, settings: dict[str, Any]) -> dict[str, Any]:
    patches = _scored(inside, threshold)
    low, high, over = _auroc_bounds(inside, patches, **settings)
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
    inside: "pd.DataFrame", patches: Scored, *, n_resamples: int, confidence: float, seed: int
) -> tuple[float, float, str]:
    """By groups where there are enough of them, else by patches, else NaN."""
    if inside["group"].nunique() >= FEW_GROUPS:
        try:
            resampled = resample(
                {"auroc": auroc.statistic(patches)},
                patches.labels,
                inside["group"],
                n_resamples=n_resamples,
                rng=np.random.default_rng(seed),
            )
            return *resampled.bounds("auroc", confidence=confidence), "groups"
        except UndefinedMetric:
            pass  # too many resamples lack a class
    try:
        interval = delong(patches.labels, patches.scores, confidence=confidence)
    except UndefinedMetric:
        return np.nan, np.nan, ""
    return interval.low, interval.high, "patches"


def _without(rows: "pd.DataFrame", inside: "pd.DataFrame", threshold: float) -> float:
    rest = rows.drop(inside.index)
    return _value(auroc, _scored(rest, threshold)) if len(rest) else np.nan


def _scored(rows: "pd.DataFrame", threshold: float) -> Scored:
    return scored(rows["label"], rows["probability"], threshold=threshold)


def _value(metric: Metric, patches: Scored) -> float:
    try:
        return metric.of(patches)
    except UndefinedMetric:
        return np.nan


def _pairs_won_within(patches: Scored, group_of: NDArray[np.intp], n_pairs: Any) -> Floats:
    """(g,) pairs of one group whose tumour patch scores above its normal one, ties half."""
    won = np.zeros(len(n_pairs))
    ordered = np.argsort(group_of, kind="stable")
    for group, members in enumerate(
        np.split(ordered, np.cumsum(np.bincount(group_of, minlength=len(n_pairs)))[:-1])
    ):
        if n_pairs[group]:
            placed = placements(patches.labels[members], patches.scores[members])
            won[group] = placed.auroc * n_pairs[group]
    return won
