"""The jackknife over groups: by hand, against a loop, and how often it errs in a simulation."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from src.evaluation.intervals import Difference, Jackknife, paired_difference
from src.evaluation.metrics import UndefinedMetric, auroc, scored


def _patches(n=60, n_groups=6, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(2, size=n)
    scores = np.clip(np.round(rng.normal(0.4 + 0.2 * labels, 0.2), 1), 0, 1)
    groups = np.array([f"slide {g}" for g in rng.integers(n_groups, size=n)])
    return labels, scores, groups


def _auroc(labels, scores):
    return auroc.statistic(scored(labels, scores))


def test_values_are_those_without_each_group():
    """Groups weighted by what is left out, or a group taken for its neighbour."""
    labels, scores, groups = _patches()
    jackknife = Jackknife(labels, groups)
    expected = [roc_auc_score(labels[groups != g], scores[groups != g]) for g in jackknife.names]
    found = jackknife.values(_auroc(labels, scores))
    np.testing.assert_allclose(found, [roc_auc_score(labels, scores), *expected], rtol=1e-12)


def test_interval_of_a_mean_by_hand():
    """Means 1, 2, 3 of three equal groups: standard error √(1/3), t of 2 degrees 4.303."""
    labels, groups = np.tile([0, 1], 6), np.repeat(["a", "b", "c"], 4)
    values = np.repeat([1.0, 2.0, 3.0], 4)
    jackknife = Jackknife(labels, groups)
    found = jackknife.interval(
        lambda weights: weights @ values / weights.sum(axis=1), confidence=0.95, scale="plain"
    )
    assert jackknife.n_effective == pytest.approx(3)
    half = 4.302653 * np.sqrt(1 / 3)
    assert (found.value, found.low, found.high) == pytest.approx((2, 2 - half, 2 + half))


@pytest.mark.parametrize(
    ("tumour", "normal", "effective"),
    [
        ([10, 10, 10, 10], [10, 10, 10, 10], 4),
        ([10, 10, 0, 0], [10, 10, 10, 10], 8 / 3),  # 2 groups of tumour, 4 of normal patches
        ([97, 1, 1, 1], [97, 1, 1, 1], 1 / (0.97**2 + 3 * 0.01**2)),
    ],
)
def test_effective_groups(tumour, normal, effective):
    """A huge slide beside three tiny ones counted as four."""
    labels = np.concatenate([np.ones(sum(tumour)), np.zeros(sum(normal))])
    groups = np.concatenate([np.repeat(range(4), tumour), np.repeat(range(4), normal)])
    assert Jackknife(labels, groups).n_effective == pytest.approx(effective)


def test_copies_within_a_group_do_not_narrow_the_interval():
    """Counted one by one, 20 copies of every patch look like 20 times the evidence."""
    labels, scores, groups = _patches(n=80, n_groups=20)
    one = Jackknife(labels, groups).interval(_auroc(labels, scores), confidence=0.95, scale="logit")
    labels, scores, groups = (np.repeat(a, 20) for a in (labels, scores, groups))
    many = Jackknife(labels, groups).interval(
        _auroc(labels, scores), confidence=0.95, scale="logit"
    )
    assert (many.low, many.high) == pytest.approx((one.low, one.high))


def test_many_groups_are_left_out_in_blocks():
    """One pass a patch would take hours where every patch is a group; the width stays."""
    rng = np.random.default_rng(0)
    labels = rng.integers(2, size=6000)
    scores = np.clip(rng.normal(0.4 + 0.2 * labels, 0.2), 0, 1)
    jackknife = Jackknife(labels, np.arange(6000))
    assert (jackknife.n_groups, len(jackknife.names)) == (6000, 200)
    found = jackknife.interval(_auroc(labels, scores), confidence=0.95, scale="logit")
    # DeLong's variance, from placements
    tumour, normal = scores[labels == 1], scores[labels == 0]
    above = (tumour[:, None] > normal).astype(float)
    variance = above.mean(1).var(ddof=1) / len(tumour) + above.mean(0).var(ddof=1) / len(normal)
    assert found.high - found.low == pytest.approx(2 * 1.96 * np.sqrt(variance), rel=0.15)


def test_no_interval_where_nothing_varies():
    """A sensitivity of 1 with the interval 1 to 1, from three slides."""
    labels, groups = np.tile([0, 1], 6), np.repeat(range(3), 4)
    with pytest.raises(UndefinedMetric, match="it is 1 whichever group is left out"):
        Jackknife(labels, groups).interval(
            _auroc(labels, labels.astype(float)), confidence=0.95, scale="logit"
        )


def test_no_interval_where_one_group_holds_a_class_alone():
    """NaN bounds, or an interval from the groups that happen to be defined."""
    labels = np.array([1, 1, 0, 0, 0, 0])
    groups = np.array(["a", "a", "b", "b", "c", "c"])
    with pytest.raises(UndefinedMetric, match="undefined without a, on which it rests alone"):
        Jackknife(labels, groups).interval(
            _auroc(labels, np.arange(6.0)), confidence=0.95, scale="logit"
        )


@pytest.mark.parametrize(
    ("labels", "groups", "message"),
    [([0, 1, 0, 1], list("aabb"), "at least 3 groups; got 2"), ([1, 1, 1], list("abc"), "classes")],
)
def test_nothing_to_leave_out_is_refused(labels, groups, message):
    """Two groups have a spread, but nobody knows how wide the next one is."""
    with pytest.raises(UndefinedMetric, match=message):
        Jackknife(labels, groups)


def test_difference_is_paired():
    """From two independent intervals it would be as wide as both together."""
    labels, scores, groups = _patches(n=200, n_groups=20)
    worse = np.where(labels == 1, scores - 0.05, scores)
    paired = paired_difference(labels, scores, worse, groups, confidence=0.95)
    value = roc_auc_score(labels, scores) - roc_auc_score(labels, worse)
    assert paired.value == pytest.approx(value)
    assert paired.low < paired.value < paired.high
    assert paired.above_zero
    alone = Jackknife(labels, groups).interval(
        _auroc(labels, scores), confidence=0.95, scale="plain"
    )
    assert paired.high - paired.low < 0.5 * (alone.high - alone.low)


def test_same_scores_do_not_differ():
    """>= in place of > would promote a copy over the champion."""
    labels, scores, groups = _patches()
    difference = paired_difference(labels, scores, scores, groups, confidence=0.95)
    assert difference == Difference(0, 0, 0, 0.95)
    assert not difference.above_zero


def test_bands_are_pointwise_and_skip_what_has_no_spread():
    labels, groups = np.tile([0, 1], 6), np.repeat(["a", "b", "c"], 4)
    shares = np.stack([np.repeat([0.2, 0.5, 0.8], 4), np.ones(12)], axis=1)

    def statistic(weights):
        return weights @ shares / weights.sum(axis=1, keepdims=True)

    jackknife = Jackknife(labels, groups)
    bands = jackknife.bands(statistic, confidence=0.9)
    alone = jackknife.interval(lambda w: statistic(w)[:, 0], confidence=0.9, scale="logit")
    np.testing.assert_allclose(bands, [[alone.low, np.nan], [alone.high, np.nan]])


@pytest.mark.parametrize(("n_groups", "n_tumour_groups"), [(3, 3), (5, 5), (8, 3)])
def test_equal_rivals_are_rarely_called_different(n_groups, n_tumour_groups):
    """The clustered bootstrap's 95 % interval was above 0 in 14 % of such cases with 3 groups.

    Two equal models whose strength varies by slide; nominal 2.5 %, 600 simulations: a true 3.5 %
    stays below 5.2 % in 98 of 100 runs, and the bootstrap's 12 % never does.
    """
    rng = np.random.default_rng(n_groups)
    groups = np.repeat(np.arange(n_groups), 100)
    passed = 0
    for _ in range(600):
        labels = (rng.random(len(groups)) < 0.4) & (groups < n_tumour_groups)
        strength = rng.normal(1.5, 0.5, (2, n_groups))[:, groups]
        common = rng.normal(size=len(groups))
        one, other = labels * strength + 0.8 * common + rng.normal(0, 0.6, (2, len(groups)))
        passed += paired_difference(labels, one, other, groups, confidence=0.95).above_zero
    assert passed / 600 <= 0.052
