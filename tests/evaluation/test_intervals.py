"""The clustered bootstrap against a loop, and what its intervals must and must not say."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from src.evaluation import intervals
from src.evaluation.intervals import Difference, paired_difference, resample
from src.evaluation.metrics import METRICS, UndefinedMetric, auroc, scored


def _patches(n=30, n_groups=6, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(2, size=n)
    scores = np.clip(np.round(rng.normal(0.4 + 0.2 * labels, 0.2), 1), 0, 1)
    groups = np.array([f"slide {g}" for g in rng.integers(n_groups, size=n)])
    return labels, scores, groups


def _auroc_in_resamples(labels, scores, groups, *, n_resamples, seed):
    statistics = {"auroc": auroc.statistic(scored(labels, scores))}
    rng = np.random.default_rng(seed)
    return resample(statistics, labels, groups, n_resamples=n_resamples, rng=rng)


def _slow_loop(labels, scores, groups, *, n_resamples, seed):
    """Whole groups put together patch by patch, then scikit-learn; same draws."""
    rng = np.random.default_rng(seed)
    names, values, n_redrawn = np.unique(groups), [], 0
    while len(values) < n_resamples:
        drawn = names[rng.integers(len(names), size=len(names))]
        rows = np.concatenate([np.flatnonzero(groups == name) for name in drawn])
        if len(set(labels[rows])) == 2:
            values.append(roc_auc_score(labels[rows], scores[rows]))
        else:
            n_redrawn += 1
    return np.array(values), n_redrawn


def test_equals_a_slow_loop_for_the_same_draws():
    """Patches drawn one by one, a group drawn once only, or weights in another order."""
    labels, scores, groups = _patches()
    fast = _auroc_in_resamples(labels, scores, groups, n_resamples=50, seed=4)
    slow, _ = _slow_loop(labels, scores, groups, n_resamples=50, seed=4)
    np.testing.assert_allclose(fast.values["auroc"], slow, rtol=1e-12)
    assert fast.n_groups == 6


def test_resamples_of_one_class_are_drawn_anew_and_counted():
    """Silently dropped, they would leave fewer resamples than asked for."""
    labels = np.array([0, 0, 0, 0, 1, 1])
    scores = np.array([0.1, 0.5, 0.3, 0.2, 0.4, 0.9])
    groups = np.array(["a", "a", "b", "c", "d", "d"])
    fast = _auroc_in_resamples(labels, scores, groups, n_resamples=200, seed=2)
    slow, n_redrawn = _slow_loop(labels, scores, groups, n_resamples=200, seed=2)
    np.testing.assert_allclose(fast.values["auroc"], slow, rtol=1e-12)
    assert fast.n_redrawn == n_redrawn > 20


def test_block_size_does_not_change_the_result(monkeypatch):
    """The number of patches held at once would leak into the figures."""
    labels, scores, groups = _patches()
    at_once = _auroc_in_resamples(labels, scores, groups, n_resamples=40, seed=1)
    monkeypatch.setattr(intervals, "_BLOCK_WEIGHTS", 7 * len(labels))
    in_blocks = _auroc_in_resamples(labels, scores, groups, n_resamples=40, seed=1)
    np.testing.assert_array_equal(at_once.values["auroc"], in_blocks.values["auroc"])


def test_copies_within_a_group_do_not_narrow_the_interval():
    """Drawn patch by patch, 20 copies of every patch look like 20 times the evidence."""
    labels, scores, _ = _patches(n=40, seed=2)
    labels, scores = np.repeat(labels, 20), np.repeat(scores, 20)
    by_group = _auroc_in_resamples(
        labels, scores, np.repeat(np.arange(40), 20), n_resamples=400, seed=0
    )
    by_patch = _auroc_in_resamples(labels, scores, np.arange(800), n_resamples=400, seed=0)
    low, high = by_group.bounds("auroc", confidence=0.95)
    narrow_low, narrow_high = by_patch.bounds("auroc", confidence=0.95)
    assert high - low > 3 * (narrow_high - narrow_low)


def test_bounds_are_the_percentiles():
    """Confidence taken as one tail, or 0.95 of the wrong side."""
    resampled = intervals.Resampled({"x": np.arange(101.0)}, n_groups=2, n_redrawn=0)
    assert resampled.bounds("x", confidence=0.9) == pytest.approx((5, 95))


def test_undefined_in_a_resample_gives_no_interval():
    """NaN bounds, or percentiles of what happened to be defined."""
    resampled = intervals.Resampled({"ppv": np.array([0.5, np.nan])}, n_groups=2, n_redrawn=0)
    with pytest.raises(UndefinedMetric, match="no interval for ppv: undefined in 1 of 2"):
        resampled.bounds("ppv", confidence=0.95)


def test_one_group_is_refused():
    """Every resample is the same: an interval of width 0 that beats any baseline."""
    with pytest.raises(UndefinedMetric, match="at least 2 groups; got 1"):
        _auroc_in_resamples(np.array([0, 1]), [0.1, 0.9], ["a", "a"], n_resamples=100, seed=0)


def test_groups_that_rarely_hold_both_classes_are_refused():
    """Without a limit, one class alone would be redrawn for ever."""
    labels = np.array([0, 0, 0])
    with pytest.raises(UndefinedMetric, match="0 groups hold tumour, 3 normal"):
        resample({}, labels, ["a", "b", "c"], n_resamples=100, rng=np.random.default_rng(0))


def test_difference_is_paired():
    """From two independent bootstraps it would be as wide as both together."""
    labels, scores, groups = _patches(n=200, n_groups=20)
    worse = np.where(labels == 1, scores - 0.05, scores)
    settings = {"n_resamples": 300, "confidence": 0.95}
    paired = paired_difference(
        labels, scores, worse, groups, rng=np.random.default_rng(0), **settings
    )
    assert paired.value == pytest.approx(
        roc_auc_score(labels, scores) - roc_auc_score(labels, worse)
    )
    assert paired.low <= paired.value <= paired.high
    assert paired.above_zero
    alone = _auroc_in_resamples(labels, scores, groups, n_resamples=300, seed=0)
    low, high = alone.bounds("auroc", confidence=0.95)
    assert paired.high - paired.low < 0.5 * (high - low)


def test_same_scores_do_not_differ():
    """>= in place of > would promote a copy over the baseline."""
    labels, scores, groups = _patches()
    difference = paired_difference(
        labels,
        scores,
        scores,
        groups,
        n_resamples=100,
        confidence=0.95,
        rng=np.random.default_rng(0),
    )
    assert (difference.value, difference.low, difference.high) == (0, 0, 0)
    assert not difference.above_zero


@pytest.mark.parametrize(("low", "above"), [(0.0, False), (1e-9, True)])
def test_above_zero_on_both_sides_of_the_boundary(low, above):
    assert Difference(0.1, low, 0.2).above_zero is above


def test_all_metrics_of_the_table_can_be_resampled():
    """Row sums of one metric standing for another's."""
    labels, scores, groups = _patches(n=300, n_groups=30)
    patches = scored(labels, scores, threshold=0.5)
    resampled = resample(
        {name: metric.statistic(patches) for name, metric in METRICS.items()},
        labels,
        groups,
        n_resamples=200,
        rng=np.random.default_rng(0),
    )
    for name, metric in METRICS.items():
        assert resampled.values[name].shape == (200,)
        value = metric.of(patches)
        low, high = resampled.metric_bounds(name, metric, value, confidence=0.99)
        assert low < high
        assert metric.interval == "basic" or low < value < high


def test_basic_interval_takes_out_the_noise_of_resampling():
    """Resamples around 0.06 of an ECE of 0.04: percentiles would say that 0.04 is too low."""
    resampled = intervals.Resampled({"ece": np.linspace(0.03, 0.09, 101)}, n_groups=9, n_redrawn=0)
    low, high = resampled.metric_bounds("ece", METRICS["ece"], 0.04, confidence=0.9)
    assert (low, high) == pytest.approx((0.0, 0.08 - 0.033))


def test_bands_are_pointwise_and_skip_what_is_undefined():
    values = np.stack([np.arange(101.0), np.arange(101.0) * 2], axis=1)
    values[100, 1] = np.nan
    bands = intervals.Resampled({"x": values}, n_groups=2, n_redrawn=0).bands("x", confidence=0.9)
    np.testing.assert_allclose(bands, [[5.0, 9.9], [95.0, 188.1]])
