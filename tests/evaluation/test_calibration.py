"""The temperature that made the labels is found again, and certainty is never invented."""

import numpy as np
import pytest
from scipy.optimize import brentq

from src.evaluation.calibration import at_bound, fit_temperature, probability, reliability_curve
from src.evaluation.metrics import UndefinedMetric, log_loss
from src.evaluation.operating_point import choose_threshold


def _calibrated_logits(n=20_000, seed=0):
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, size=n)
    return (rng.random(n) < 1 / (1 + np.exp(-logits))).astype(np.uint8), logits


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_known_temperature_is_recovered(temperature):
    """Multiplying in place of dividing gives 1 / T."""
    labels, logits = _calibrated_logits()
    assert fit_temperature(labels, logits * temperature) == pytest.approx(temperature, rel=0.05)


def test_temperature_lowers_log_loss_of_overconfident_logits():
    labels, logits = _calibrated_logits()
    temperature = fit_temperature(labels, 3 * logits)
    before = log_loss(labels, probability(3 * logits, temperature=1))
    assert log_loss(labels, probability(3 * logits, temperature=temperature)) < 0.9 * before


def test_separated_val_does_not_become_certain():
    """The plain log loss of separated patches is least at T = 0, where every p is 0 or 1."""
    labels = np.repeat([0, 1], 100)
    probabilities = probability(
        labels * 8.0 - 4, temperature=fit_temperature(labels, labels * 8.0 - 4)
    )
    assert probabilities.max() == pytest.approx(101 / 102, abs=1e-4)


@pytest.mark.parametrize(("sign", "bound"), [(-1, True), (1, False)])
def test_logits_that_point_the_wrong_way_run_into_the_bound(sign, bound):
    """A temperature of 100 would pass for a calibrated model without a word."""
    labels, logits = _calibrated_logits()
    assert at_bound(fit_temperature(labels, sign * logits)) is bound


def test_golden_patches():
    """A served probability that moves by a digit when somebody changes the fit.

    T by another route: where the derivative of the loss in 1 / T is 0, for targets 6/7 and 1/7.
    """
    labels = np.repeat([0, 1], 5)
    logits = np.array([-6.0, -4.0, -3.0, -1.0, 2.0, -2.0, 1.0, 3.0, 5.0, 8.0])
    targets = np.where(labels, 6 / 7, 1 / 7)
    inverse = brentq(lambda b: logits @ (1 / (1 + np.exp(-b * logits)) - targets), 0.01, 10)
    temperature = fit_temperature(labels, logits)
    assert temperature == pytest.approx(3.597373, abs=1e-6)
    assert temperature == pytest.approx(1 / inverse, rel=1e-6)
    probabilities = probability(logits, temperature=temperature)
    np.testing.assert_allclose(probabilities[[0, 4, 9]], [0.158707, 0.635518, 0.902370], atol=1e-6)
    for rule, place in (({"min_sensitivity": 0.95}, 5), ({"min_specificity": 0.8}, 6)):
        # a hair below the patch it was picked by, so that float32 leaves that patch above
        threshold = choose_threshold(rule, labels, probabilities)
        assert 0 < probabilities[place] - threshold <= 1e-4


def test_one_class_is_refused():
    with pytest.raises(UndefinedMetric, match="got 3 normal and 0 tumour"):
        fit_temperature([0, 0, 0], [0.1, 0.2, 0.3])


def test_probability_of_extreme_logits_is_exact_and_silent():
    """exp overflows in the textbook formula; warnings are errors here."""
    values = probability(np.array([-1e4, 0.0, np.log(3.0) * 2, 1e4]), temperature=2.0)
    np.testing.assert_allclose(values, [0, 0.5, 0.75, 1], atol=1e-15)


def test_reliability_curve_by_hand():
    """Empty bins drawn as 0, or the bin's centre in place of its mean probability."""
    curve = reliability_curve([0, 1, 1], [0.01, 0.03, 0.99])
    np.testing.assert_allclose(curve.mean_probability, [0.02, 0.99])
    np.testing.assert_allclose(curve.tumour_share, [0.5, 1.0])
    assert curve.n_patches.tolist() == [2, 1]
