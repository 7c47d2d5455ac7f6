"""Bootstrap intervals clustered by group: whole groups are drawn, never single patches.

Patches of one slide resemble each other; drawn one by one they would promise far more certainty
than a handful of slides can give. Every statistic sees the same resamples, so the difference of two
is paired.
"""

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from src.evaluation.curves import Floats
from src.evaluation.metrics import Metric, Statistic, UndefinedMetric, auroc, scored

FEW_GROUPS = 5  # below it, percentile intervals are too narrow to lean on
_BLOCK_WEIGHTS = 1 << 18  # 2 MiB of float64 a block: it and a few like it stay in the cache
_MAX_REDRAWN_SHARE = 0.5


@dataclass(frozen=True)
class Interval:
    """A value with the bounds of its percentile interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference(Interval):
    """What the first of two classifiers is better by on the same patches, with its interval."""

    @property
    def above_zero(self) -> bool:
        """Whether the whole interval lies above 0."""
        return self.low > 0


@dataclass(frozen=True)
class Resampled:
    """Each statistic in each resample.

    ``values`` maps a statistic's name to (n_resamples,), or (n_resamples, k) for one with k values,
    NaN where it is undefined. ``n_redrawn`` counts resamples that lacked a class and were drawn
    anew.
    """

    values: Mapping[str, Floats]
    n_groups: int
    n_redrawn: int

    def bounds(self, name: str, *, confidence: float) -> tuple[float, float]:
        """Percentile bounds of one statistic."""
        return _percentiles(name, self.values[name], confidence)

    def metric_bounds(
        self, name: str, metric: Metric, value: float, *, confidence: float
    ) -> tuple[float, float]:
        """Bounds of a metric that is ``value`` on the patches themselves, of the kind it asks for.

        A basic interval is 2 × value − percentile (Davison & Hinkley 1997, 5.2), which takes out
        the bias that resampling adds; it need not hold the value, which has the same bias.
        """
        low, high = self.bounds(name, confidence=confidence)
        if metric.interval == "basic":
            low, high = 2 * value - high, 2 * value - low
        if metric.smallest is not None:
            low, high = max(low, metric.smallest), max(high, metric.smallest)
        return low, high

    def bands(self, name: str, *, confidence: float) -> Floats:
        """Pointwise percentile bounds of a statistic that has k values a resample, (2, k).

        Resamples in which a point is undefined are left out of that point.
        """
        levels = [(1 - confidence) / 2, (1 + confidence) / 2]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "All-NaN slice")  # such a point has no bounds
            return np.asarray(np.nanquantile(self.values[name], levels, axis=0))

    def difference_bounds(self, name: str, other: str, *, confidence: float) -> tuple[float, float]:
        """Percentile bounds of ``name`` − ``other``, resample by resample."""
        return _percentiles(f"{name} − {other}", self.values[name] - self.values[other], confidence)


def resample(
    statistics: Mapping[str, Statistic],
    labels: ArrayLike,
    groups: ArrayLike,
    *,
    n_resamples: int,
    rng: np.random.Generator,
) -> Resampled:
    """Draw as many groups as there are, with replacement, ``n_resamples`` times.

    ``labels`` (n,) 0/1 and ``groups`` (n,) say what each patch is; a statistic gets weights (b, n),
    how often each patch was drawn. A resample of one class only is drawn anew and counted, since
    ranking metrics have no value there. Memory doesn't grow with ``n_resamples`` × n.

    Raises
    ------
    UndefinedMetric
        One group only, or most resamples lack a class: no interval can be given.
    """
    labels = np.asarray(labels).astype(np.bool_)
    names, group_of = np.unique(np.asarray(groups), return_inverse=True)
    if len(names) < 2:
        raise UndefinedMetric(
            f"an interval clustered by group needs at least 2 groups; got {len(names)}: "
            "raise the fraction of this split or give more slides"
        )
    draws = _Draws(labels, group_of, len(names), rng)
    block_size = max(1, _BLOCK_WEIGHTS // len(labels))
    parts: dict[str, list[Floats]] = {name: [] for name in statistics}
    for counts in draws.blocks(n_resamples, block_size):
        weights = np.take(counts, group_of, axis=1)
        for name, statistic in statistics.items():
            parts[name].append(statistic(weights))
    values = {name: np.concatenate(part) for name, part in parts.items()}
    return Resampled(values, n_groups=len(names), n_redrawn=draws.n_redrawn)


def paired_difference(
    labels: ArrayLike,
    scores: ArrayLike,
    other_scores: ArrayLike,
    groups: ArrayLike,
    *,
    n_resamples: int,
    confidence: float,
    rng: np.random.Generator,
) -> Difference:
    """AUROC of ``scores`` minus AUROC of ``other_scores`` on the same patches, all (n,).

    Raises
    ------
    UndefinedMetric
        See :func:`resample`; or the patches are of one class.
    """
    first, second = scored(labels, scores), scored(labels, other_scores)
    value = auroc.of(first) - auroc.of(second)
    statistics = {"first": auroc.statistic(first), "second": auroc.statistic(second)}
    resampled = resample(statistics, labels, groups, n_resamples=n_resamples, rng=rng)
    low, high = resampled.difference_bounds("first", "second", confidence=confidence)
    return Difference(value, low, high)


class _Draws:
    """Resamples of groups, as how often each group was drawn."""

    def __init__(
        self,
        labels: NDArray[np.bool_],
        group_of: NDArray[np.intp],
        n_groups: int,
        rng: np.random.Generator,
    ) -> None:
        self.rng = rng
        self.n_groups = n_groups
        self.n_tumour = np.bincount(group_of[labels], minlength=n_groups)
        self.n_normal = np.bincount(group_of[~labels], minlength=n_groups)
        self.n_redrawn = 0

    def blocks(self, n_resamples: int, block_size: int) -> Iterator[Floats]:
        """Blocks of at most (block_size, n_groups), ``n_resamples`` rows in all."""
        n_kept = 0
        while n_kept < n_resamples:
            counts = self._counts(min(block_size, n_resamples - n_kept))
            both_classes = (counts @ self.n_tumour > 0) & (counts @ self.n_normal > 0)
            n_kept += int(both_classes.sum())
            self.n_redrawn += int((~both_classes).sum())
            self._refuse_if_hopeless(n_resamples)
            if both_classes.any():
                yield counts[both_classes]

    def _counts(self, n: int) -> Floats:
        drawn = self.rng.integers(self.n_groups, size=(n, self.n_groups))
        drawn += np.arange(n)[:, None] * self.n_groups
        counts = np.bincount(drawn.ravel(), minlength=n * self.n_groups)
        return counts.reshape(n, self.n_groups).astype(np.float64)

    def _refuse_if_hopeless(self, n_resamples: int) -> None:
        limit = n_resamples * _MAX_REDRAWN_SHARE / (1 - _MAX_REDRAWN_SHARE)
        if self.n_redrawn > limit:
            raise UndefinedMetric(
                f"more than {_MAX_REDRAWN_SHARE:.0%} of the resamples of {self.n_groups} groups "
                f"lack a class ({np.count_nonzero(self.n_tumour)} groups hold tumour, "
                f"{np.count_nonzero(self.n_normal)} normal patches): no interval can be given; "
                "raise the fraction of this split or give more slides"
            )


def _percentiles(name: str, values: Floats, confidence: float) -> tuple[float, float]:
    n_undefined = int(np.isnan(values).sum())
    if n_undefined:
        raise UndefinedMetric(
            f"no interval for {name}: undefined in {n_undefined:,} of {len(values):,} resamples"
        )
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
