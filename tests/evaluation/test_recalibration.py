"""Calibration slope and intercept against scikit-learn and by construction."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from src.evaluation import recalibration
from src.evaluation.metrics import UndefinedMetric, calibration_intercept, calibration_slope
from src.evaluation.recalibration import fit_line, fit_shift, logit, points_of


def _drawn(n, seed=0, *, scale=1.0, shift=0.0):
    """Labels drawn from probabilities that are then bent: logit → scale × logit + shift."""
    rng = np.random.default_rng(seed)
    true = rng.normal(-0.5, 2.0, n)
    labels = rng.random(n) < 1 / (1 + np.exp(-true))
    return labels, 1 / (1 + np.exp(-(scale * true + shift)))


def test_slope_and_intercept_are_scikit_learns():
    """A Newton step with the wrong sign or Hessian."""
    labels, probabilities = _drawn(400)
    fit = fit_line(points_of(labels, probabilities), np.ones((1, 400)))[0]
    reference = LogisticRegression(C=np.inf, tol=1e-12, solver="newton-cholesky").fit(
        logit(probabilities)[:, None], labels
    )
    np.testing.assert_allclose(fit, [reference.intercept_[0], reference.coef_[0, 0]], rtol=1e-6)


@pytest.mark.parametrize("scale", [0.05, 0.5, 2.0, 5.0])
def test_slope_undoes_a_scale(scale):
    """Newton from a poor start runs away when probabilities are near 0 and 1."""
    labels, plain = _drawn(500)
    _, bent = _drawn(500, scale=scale)
    assert calibration_slope(labels, bent) == pytest.approx(
        calibration_slope(labels, plain) / scale, rel=1e-4
    )


@pytest.mark.parametrize("shift", [-10.0, -1.0, 3.0, 10.0])
def test_intercept_undoes_a_shift(shift):
    """The sign: probabilities too high by 3 in the logit need −3."""
    labels, plain = _drawn(500)
    _, bent = _drawn(500, shift=shift)
    expected = calibration_intercept(labels, plain) - shift
    assert calibration_intercept(labels, bent) == pytest.approx(expected, abs=1e-6)


def test_at_the_fit_mean_probability_is_the_share_of_tumour():
    """The definition of calibration in the large."""
    labels, probabilities = _drawn(300, shift=1.0)
    shift = calibration_intercept(labels, probabilities)
    shifted = 1 / (1 + np.exp(-(logit(probabilities) + shift)))
    assert shifted.mean() == pytest.approx(labels.mean())


def test_points_stand_for_many_patches(monkeypatch):
    """Bins so wide that they move the result, or weights summed in another order."""
    labels, probabilities = _drawn(20_000)
    weights = np.random.default_rng(1).integers(3, size=(3, 20_000)).astype(float)
    fast = points_of(labels, probabilities)
    monkeypatch.setattr(recalibration, "MAX_POINTS", 20_000)
    exact = points_of(labels, probabilities)
    assert len(fast.logits) < 2 * 1024 < len(exact.logits) == 20_000
    np.testing.assert_allclose(fit_line(fast, weights), fit_line(exact, weights), atol=1e-3)
    np.testing.assert_allclose(fit_shift(fast, weights), fit_shift(exact, weights), atol=1e-3)


def test_separated_classes_have_no_slope():
    """A slope of 37 is where the iteration stopped, not a result."""
    with pytest.raises(UndefinedMetric, match="overlap in probability"):
        calibration_slope([0, 0, 1, 1], [0.1, 0.2, 0.7, 0.9])


def test_one_class_has_neither():
    with pytest.raises(UndefinedMetric, match="both classes"):
        calibration_intercept([1, 1], [0.3, 0.6])
