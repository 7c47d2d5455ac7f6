"""Intervals from a jackknife over groups: each group is left out in turn, never a single patch.

Patches of one slide resemble each other; counted one by one they would promise far more certainty
than a handful of slides can give. The standard error is the jackknife's (Efron & Stein 1981, Ann.
Statist. 9:586), around the value of all patches; the quantile is Student's t. Its degrees of
freedom come from the *effective* number of groups (Kish 1965), so that one huge slide beside seven
tiny ones doesn't count as eight. ``benchmarks/gate.py`` simulates how often such an interval errs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, logit, stdtrit

from src.evaluation.metrics import Floats, Statistic, UndefinedMetric, auroc, scored

MIN_GROUPS = 3
MAX_BLOCKS = 200  # more groups are left out several at a time (Kott 2001, J. Off. Stat. 17:521)
_WEIGHTS_AT_ONCE = 1 << 18  # 2 MiB of float64: a few such arrays stay in the processor's cache

Scale = Literal["logit", "log", "plain"]


@dataclass(frozen=True)
class Interval:
    """A value with the bounds of its interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference(Interval):
    """What the first of two classifiers is better by on the same patches, with its interval."""

    confidence: float

    @property
    def above_zero(self) -> bool:
        """Whether the whole interval is above 0."""
        return self.low > 0

    def __str__(self) -> str:
        """Value, interval and how sure it is: ``+0.051 (97.5 % interval +0.012 to +0.090)``."""
        return (
            f"{self.value:+.3f} ({100 * self.confidence:.4g} % interval {self.low:+.3f} to "
            f"{self.high:+.3f})"
        )


class Jackknife:
    """n patches with each of b groups left out in turn.

    Parameters
    ----------
    labels : (n,) 0 normal, 1 tumour
    groups : (n,) the group of each patch

    Attributes
    ----------
    n_groups : number of groups
    n_effective : of equally large groups of both classes, how many would weigh as these do; at most
        ``n_groups``
    names : (b,) of what is left out: groups, or ``block 17`` where there are more than MAX_BLOCKS

    Raises
    ------
    UndefinedMetric
        Fewer than MIN_GROUPS groups, or one class only: no interval can be given.
    """

    def __init__(self, labels: ArrayLike, groups: ArrayLike) -> None:
        is_tumour = np.asarray(labels).astype(np.bool_)
        names, group_of = np.unique(np.asarray(groups).astype(np.str_), return_inverse=True)
        self.n_groups = len(names)
        if self.n_groups < MIN_GROUPS:
            raise UndefinedMetric(
                f"an interval needs at least {MIN_GROUPS} groups; got {self.n_groups}: raise the "
                "fraction of this split or give more slides"
            )
        if self.n_groups > MAX_BLOCKS:
            # neighbours in the alphabet may be alike, so blocks are drawn, always in the same way
            block_of = np.random.default_rng(0).permutation(self.n_groups) % MAX_BLOCKS
            names, group_of = (
                np.array([f"block {b}" for b in range(MAX_BLOCKS)]),
                block_of[group_of],
            )
        self.names = [str(name) for name in names]
        self._group_of: NDArray[np.intp] = group_of
        self.n_effective = _effective(is_tumour, group_of, len(names))

    def values(self, statistic: Statistic) -> Floats:
        """(1 + b, …): the statistic of all patches, then without each group; NaN if undefined."""
        b, n = len(self.names), len(self._group_of)
        rows = max(1, _WEIGHTS_AT_ONCE // n)
        parts = [statistic(np.ones((1, n)))]
        for start in range(0, b, rows):
            left_out = np.arange(start, min(start + rows, b))[:, None]
            parts.append(statistic((self._group_of != left_out).astype(np.float64)))
        return np.concatenate(parts)

    def interval(self, statistic: Statistic, *, confidence: float, scale: Scale) -> Interval:
        """Value and bounds, symmetric on ``scale``: a share stays within 0 to 1 on ``logit``.

        Raises
        ------
        UndefinedMetric
            The statistic is undefined without one of the groups, or shows no spread at all.
        """
        values = self.values(statistic)
        half = self._half_width(values, confidence)
        value = float(values[0])
        at_end = (scale == "logit" and not 0 < value < 1) or (scale == "log" and value <= 0)
        if half == 0 or at_end:
            raise UndefinedMetric(
                f"no interval: it is {value:g} whichever group is left out"
                if half == 0
                else f"no interval for a value of {value:g}, the end of its range"
            )
        low, high = _on_scale(values[0], half, scale)
        return Interval(value, float(low), float(high))

    def difference(
        self, statistic: Statistic, other: Statistic, *, confidence: float
    ) -> Difference:
        """``statistic`` minus ``other``, group by group, hence paired.

        Raises
        ------
        UndefinedMetric
            See :meth:`interval`; two that are the same everywhere differ by 0 (0 to 0).
        """
        values = self.values(statistic) - self.values(other)
        return self.difference_from(values, confidence=confidence)

    def difference_from(self, values: Floats, *, confidence: float) -> Difference:
        """:meth:`difference` from its (1 + b,) values: of all patches, then without each group."""
        half, value = self._half_width(values, confidence), float(values[0])
        if half == 0 and value != 0:
            raise UndefinedMetric(f"no interval: it is {value:+g} whichever group is left out")
        return Difference(value, value - half, value + half, confidence)

    def bands(self, statistic: Statistic, *, confidence: float) -> Floats:
        """(2, k) pointwise bounds of k shares; NaN where one is undefined, 0 or 1."""
        values = self.values(statistic)
        half = self._quantile(confidence) * _standard_error(values)
        inside = (values[0] > 0) & (values[0] < 1) & (half > 0)  # False where half is NaN
        bounds = np.full((2, values.shape[1]), np.nan)
        bounds[:, inside] = _on_scale(values[0, inside], half[inside], "logit")
        return bounds

    def _half_width(self, values: Floats, confidence: float) -> float:
        missing = np.flatnonzero(np.isnan(values[1:]))
        if len(missing):
            raise UndefinedMetric(
                f"no interval: undefined without {self.names[missing[0]]}, on which it rests alone"
            )
        return self._quantile(confidence) * float(_standard_error(values))

    def _quantile(self, confidence: float) -> float:
        return float(stdtrit(self.n_effective - 1, (1 + confidence) / 2))


def paired_difference(
    labels: ArrayLike,
    scores: ArrayLike,
    other_scores: ArrayLike,
    groups: ArrayLike,
    *,
    confidence: float,
) -> Difference:
    """AUROC of ``scores`` minus AUROC of ``other_scores`` on the same patches, all (n,).

    Raises
    ------
    UndefinedMetric
        See :class:`Jackknife`; or a class is missing without one of the groups.
    """
    first, second = (auroc.statistic(scored(labels, s)) for s in (scores, other_scores))
    return Jackknife(labels, groups).difference(first, second, confidence=confidence)


def _effective(is_tumour: NDArray[np.bool_], group_of: NDArray[np.intp], b: int) -> float:
    """Harmonic mean of Kish's number (Σn)² / Σn² of groups over tumour and over normal patches.

    An AUROC is no surer than its scarcer class: tumour on 2 of 20 slides is nearer to 2 groups.
    """
    counts = [np.bincount(group_of[c], minlength=b) for c in (is_tumour, ~is_tumour)]
    if not all(count.any() for count in counts):
        raise UndefinedMetric("an interval needs patches of both classes")
    of_class = [count.sum() ** 2 / np.square(count).sum() for count in counts]
    return float(2 / (1 / of_class[0] + 1 / of_class[1]))


def _standard_error(values: Floats) -> Floats:
    """(1 + b, …) from :meth:`Jackknife.values` → (…)."""
    b = len(values) - 1
    error: Floats = np.sqrt((b - 1) / b * np.square(values[1:] - values[0]).sum(axis=0))
    return error


def _on_scale(value: Floats, half: ArrayLike, scale: Scale) -> tuple[Floats, Floats]:
    """Bounds symmetric on the scale; ``half`` is a width on the plain one (delta method)."""
    to_scale, back, slope = _SCALES[scale]
    middle, width = to_scale(value), half * slope(value)
    return back(middle - width), back(middle + width)


_SCALES: dict[Scale, tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any]]] = {
    "logit": (logit, expit, lambda v: 1 / (v * (1 - v))),
    "log": (np.log, np.exp, lambda v: 1 / v),
    "plain": (np.asarray, np.asarray, np.ones_like),
}
