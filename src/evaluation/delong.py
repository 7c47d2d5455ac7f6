"""AUROC of patches taken as independent: DeLong, DeLong & Clarke-Pearson 1988, Biometrics 44:837.

Beside the clustered bootstrap it shows what ignoring the groups would have promised; where every
patch is a group of its own the two agree. Computed from ranks as Sun & Xu 2014.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from src.evaluation.curves import Floats
from src.evaluation.intervals import Difference, Interval
from src.evaluation.metrics import UndefinedMetric, scored


@dataclass(frozen=True)
class Placements:
    """Where each patch lies among those of the other class.

    ``tumour`` (n₁,): share of the normal patches that score below, ties counting half; ``normal``
    (n₀,): share of the tumour patches that score above. Their means are the AUROC.
    """

    tumour: Floats
    normal: Floats

    @property
    def auroc(self) -> float:
        """Mean placement."""
        return float(self.tumour.mean())


def placements(labels: NDArray[np.bool_], scores: Floats) -> Placements:
    """Placements of the patches, each class in the order it came; both classes must be there."""
    tumour, normal = scores[labels], scores[~labels]
    return Placements(_share_below(tumour, normal), 1 - _share_below(normal, tumour))


def delong(labels: ArrayLike, scores: ArrayLike, *, confidence: float) -> Interval:
    """AUROC with its normal interval, cut to [0, 1].

    Raises
    ------
    UndefinedMetric
        Fewer than 2 patches of a class, or the classes are separated: the variance is 0 then, and
        says nothing.
    """
    patches = scored(labels, scores)
    _refuse_few(patches.labels)
    placed = placements(patches.labels, patches.scores)
    low, high = _normal_bounds(placed.auroc, _variance(placed.tumour, placed.normal), confidence)
    return Interval(placed.auroc, max(low, 0.0), min(high, 1.0))


def delong_difference(
    labels: ArrayLike, scores: ArrayLike, other_scores: ArrayLike, *, confidence: float
) -> Difference:
    """AUROC of ``scores`` minus that of ``other_scores`` on the same patches, with its interval.

    Raises
    ------
    UndefinedMetric
        As :func:`delong`; or the two rank the patches alike.
    """
    first, second = scored(labels, scores), scored(labels, other_scores)
    _refuse_few(first.labels)
    one, other = (placements(patches.labels, patches.scores) for patches in (first, second))
    value = one.auroc - other.auroc
    variance = _variance(one.tumour - other.tumour, one.normal - other.normal)
    return Difference(value, *_normal_bounds(value, variance, confidence))


def _share_below(scores: Floats, others: Floats) -> Floats:
    ordered = np.sort(others)
    below = np.searchsorted(ordered, scores, side="left")
    up_to = np.searchsorted(ordered, scores, side="right")
    return np.asarray((below + up_to) / (2 * len(others)))


def _variance(tumour: Floats, normal: Floats) -> float:
    return float(tumour.var(ddof=1) / len(tumour) + normal.var(ddof=1) / len(normal))


def _normal_bounds(value: float, variance: float, confidence: float) -> tuple[float, float]:
    from scipy.special import ndtri

    if variance <= 0:
        raise UndefinedMetric(
            "DeLong's interval needs patches whose placement varies; here every tumour patch "
            "stands alike to every normal one, and the variance is 0"
        )
    half = float(ndtri((1 + confidence) / 2)) * float(np.sqrt(variance))
    return value - half, value + half


def _refuse_few(labels: NDArray[np.bool_]) -> None:
    n_tumour = int(labels.sum())
    n_normal = len(labels) - n_tumour
    if min(n_tumour, n_normal) < 2:
        raise UndefinedMetric(
            f"DeLong's interval needs at least 2 patches of each class; got {n_normal} normal and "
            f"{n_tumour} tumour patches"
        )
