"""DeLong's interval against its definition, pair by pair."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from src.evaluation.delong import delong, delong_difference
from src.evaluation.intervals import resample
from src.evaluation.metrics import UndefinedMetric, auroc, scored

Z_95 = 1.959963984540054


def _patches(n=60, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(2, size=n)
    # rounded, so that there are ties
    return labels, *(np.round(rng.normal(d * labels, 1.0), 1) for d in (1.0, 0.6))


def _components(labels, scores):
    """V10 and V01 of the paper, one pair at a time."""
    tumour, normal = scores[labels == 1], scores[labels == 0]
    psi = np.array([[1.0 if t > n else 0.5 if t == n else 0.0 for n in normal] for t in tumour])
    return psi.mean(axis=1), psi.mean(axis=0)


def _slow_covariance(labels, first, second):
    """The paper's S = S10 / m + S01 / n for two classifiers, with loops over components."""
    components = [_components(labels, scores) for scores in (first, second)]
    covariance = np.zeros((2, 2))
    for a in range(2):
        for b in range(2):
            for side in range(2):
                x, y = components[a][side], components[b][side]
                total = sum((p - x.mean()) * (q - y.mean()) for p, q in zip(x, y, strict=True))
                covariance[a, b] += total / (len(x) - 1) / len(x)
    return covariance


def test_equals_the_definition():
    """Ties counted whole, the classes' variances swapped, n in place of n − 1."""
    labels, scores, other = _patches()
    interval = delong(labels, scores, confidence=0.95)
    half = Z_95 * np.sqrt(_slow_covariance(labels, scores, other)[0, 0])
    value = roc_auc_score(labels, scores)
    np.testing.assert_allclose(
        (interval.value, interval.low, interval.high), (value, value - half, value + half)
    )


def test_difference_equals_the_definition():
    """Without the covariance it would be the interval of two different sets of patches."""
    labels, scores, other = _patches()
    difference = delong_difference(labels, scores, other, confidence=0.95)
    covariance = _slow_covariance(labels, scores, other)
    half = Z_95 * np.sqrt(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    value = roc_auc_score(labels, scores) - roc_auc_score(labels, other)
    np.testing.assert_allclose(
        (difference.value, difference.low, difference.high), (value, value - half, value + half)
    )


def test_agrees_with_the_bootstrap_where_every_patch_is_its_own_group():
    """Two routes to the same interval."""
    labels, scores, _ = _patches(n=400)
    interval = delong(labels, scores, confidence=0.95)
    resampled = resample(
        {"auroc": auroc.statistic(scored(labels, scores))},
        labels,
        np.arange(400),
        n_resamples=2000,
        rng=np.random.default_rng(1),
    )
    low, high = resampled.bounds("auroc", confidence=0.95)
    assert interval.high - interval.low == pytest.approx(high - low, rel=0.08)
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=0.01)


def test_bounds_stay_within_0_and_1():
    labels, scores = np.array([0, 0, 0, 1, 1, 1]), np.array([0.1, 0.2, 0.6, 0.5, 0.8, 0.9])
    assert delong(labels, scores, confidence=0.99).high == 1


@pytest.mark.parametrize(
    ("labels", "scores", "message"),
    [
        ([0, 0, 1], [0.1, 0.2, 0.3], "at least 2 patches of each class; got 2 normal and 1"),
        ([0, 0, 1, 1], [0.1, 0.2, 0.3, 0.4], "variance is 0"),
    ],
)
def test_undefined_is_refused(labels, scores, message):
    """An interval of width 0 looks like certainty."""
    with pytest.raises(UndefinedMetric, match=message):
        delong(labels, scores, confidence=0.95)


def test_classifier_does_not_differ_from_itself():
    labels, scores, _ = _patches()
    with pytest.raises(UndefinedMetric, match="variance is 0"):
        delong_difference(labels, scores, scores, confidence=0.95)
