"""The line that made the labels is found again, and certainty is never invented."""

import numpy as np
import pytest
from scipy.optimize import minimize

from src.evaluation.calibration import at_bound, fit_calibration, probability, reliability_curve
from src.evaluation.metrics import UndefinedMetric
from src.evaluation.operating_point import choose_threshold


def _calibrated_logits(n=20_000, seed=0):
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, size=n)
    return (rng.random(n) < 1 / (1 + np.exp(-logits))).astype(np.uint8), logits


def _patches(n):
    """Logits of n patches, none of them calibrated."""
    rng = np.random.default_rng(1)
    labels = (rng.random(n) < 0.4).astype(np.uint8)
    return labels, 3 * rng.normal(labels, 1.0) + 2


def _separated(n):
    labels = np.repeat([0, 1], n // 2)
    return labels, labels * 8.0 - 4 + np.random.default_rng(0).normal(0, 0.5, n)


@pytest.mark.parametrize(
    ("labels", "logits"),
    [_patches(n) for n in (20, 600, 33_000)] + [_separated(n) for n in (20, 600, 33_000)],
)
def test_equals_a_minimisation_by_hand(labels, logits):
    """A regularised fit, a loose tolerance, labels where Platt's soft targets belong."""
    n_tumour, n_normal = labels.sum(), (1 - labels).sum()
    targets = np.where(labels, (n_tumour + 1) / (n_tumour + 2), 1 / (n_normal + 2))

    def loss(line):
        bent = line[0] * logits + line[1]
        return np.mean(np.logaddexp(0, bent) - targets * bent)

    def gradient(line):
        excess = 1 / (1 + np.exp(-line[0] * logits - line[1])) - targets
        return np.array([excess @ logits, excess.sum()]) / len(logits)

    expected = minimize(loss, [1.0, 0.0], jac=gradient, method="BFGS", options={"gtol": 1e-10}).x
    found = fit_calibration(labels, logits)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    mean = probability(logits, **found._asdict()).mean()
    assert mean == pytest.approx(labels.mean(), abs=0.005)


@pytest.mark.parametrize("sign", [-1, 0, 1])
def test_logits_that_tell_nothing_run_into_the_bound(sign):
    """A ranking turned round, or a model that passes for calibrated without a word."""
    labels, logits = _calibrated_logits()
    found = fit_calibration(labels, sign * logits + 0.7)
    assert at_bound(found.scale) is (sign < 1)
    assert found.scale > 0
    mean = probability(sign * logits + 0.7, **found._asdict()).mean()
    assert mean == pytest.approx(labels.mean(), abs=1e-3)


def test_golden_patches():
    """A served probability that moves by a digit when somebody changes the fit."""
    labels = np.repeat([0, 1], 5)
    logits = np.array([-6.0, -4.0, -3.0, -1.0, 2.0, -2.0, 1.0, 3.0, 5.0, 8.0])
    calibration = fit_calibration(labels, logits)
    assert calibration == pytest.approx((0.278065, -0.056197), abs=1e-6)
    probabilities = probability(logits, **calibration._asdict())
    np.testing.assert_allclose(probabilities[[0, 4, 9]], [0.151281, 0.622443, 0.897368], atol=1e-6)
    for rule, place in (({"min_sensitivity": 0.95}, 5), ({"min_specificity": 0.8}, 6)):
        # a hair below the patch it was picked by, so that float32 leaves that patch above
        threshold = choose_threshold(rule, labels, probabilities)
        assert 0 < probabilities[place] - threshold <= 1.001e-4


def test_one_class_is_refused():
    with pytest.raises(UndefinedMetric, match="got 3 normal and 0 tumour"):
        fit_calibration([0, 0, 0], [0.1, 0.2, 0.3])


def test_probability_of_extreme_logits_is_exact_and_silent():
    """exp overflows in the textbook formula; warnings are errors here."""
    values = probability(np.array([-1e4, 0.0, np.log(3.0) * 2, 1e4]), scale=0.5)
    np.testing.assert_allclose(values, [0, 0.5, 0.75, 1], atol=1e-15)


def test_reliability_curve_by_hand():
    """Empty bins drawn as 0, or the bin's centre in place of its mean probability."""
    curve = reliability_curve([0, 1, 1], [0.01, 0.03, 0.99])
    np.testing.assert_allclose(curve.mean_probability, [0.02, 0.99])
    np.testing.assert_allclose(curve.tumour_share, [0.5, 1.0])
    assert curve.n_patches.tolist() == [2, 1]
