"""Curves against scikit-learn, and thinning that keeps what matters."""

import numpy as np
from sklearn import metrics as sk

from src.evaluation.curves import precision_recall_curve, roc_curve, thinned


def _tied(n=50):
    rng = np.random.default_rng(0)
    labels = rng.integers(2, size=n).astype(bool)
    return labels, np.round(rng.normal(labels, 1), 1)


def test_roc_equals_scikit_learn():
    """Ties drawn as steps give a curve that depends on row order."""
    labels, scores = _tied()
    fpr, tpr = roc_curve(labels, scores)
    expected_fpr, expected_tpr, _ = sk.roc_curve(labels, scores, drop_intermediate=False)
    np.testing.assert_allclose(fpr, expected_fpr)
    np.testing.assert_allclose(tpr, expected_tpr)


def test_precision_recall_equals_scikit_learn():
    """scikit-learn lists it by falling recall and adds the point (0, 1)."""
    labels, scores = _tied()
    recall, precision = precision_recall_curve(labels, scores)
    expected_precision, expected_recall, _ = sk.precision_recall_curve(labels, scores)
    np.testing.assert_allclose(recall, expected_recall[-2::-1])
    np.testing.assert_allclose(precision, expected_precision[-2::-1])


def test_thinned_keeps_ends_and_short_curves():
    """A ROC that no longer ends at (1, 1)."""
    x = np.arange(10_001) / 10_000
    few_x, few_y = thinned(x, x**2, max_points=500)
    assert len(few_x) == 500
    assert (few_x[0], few_x[-1], few_y[-1]) == (0, 1, 1)
    np.testing.assert_array_equal(few_y, few_x**2)
    assert len(thinned(x[:500], x[:500], max_points=500)[0]) == 500
