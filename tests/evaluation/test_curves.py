"""Curves against scikit-learn; bands against a jackknife that leaves out group by group by hand."""

import numpy as np
import pytest
from scipy import stats
from scipy.special import expit, logit
from sklearn import metrics as sk

from src.evaluation.curves import (
    GRID,
    RATES,
    curve_bands,
    precision_recall_curve,
    roc_curve,
)
from src.evaluation.intervals import Jackknife
from src.evaluation.metrics import METRICS, scored


@pytest.fixture(scope="module")
def patches():
    rng = np.random.default_rng(0)
    labels = rng.integers(2, size=400)
    groups = np.array([f"g{g}" for g in rng.integers(6, size=400)])
    return labels, np.clip(np.round(rng.normal(0.4 + 0.2 * labels, 0.2), 2), 0, 1), groups


@pytest.fixture(scope="module")
def bands(patches):
    return curve_bands(*patches, confidence=0.9)


def _bounds(patches, curve):
    """Of ``curve(labels, probabilities)`` (k,), pointwise on the logit scale."""
    labels, probabilities, groups = patches
    whole = curve(labels, probabilities)
    without = [curve(labels[groups != g], probabilities[groups != g]) for g in np.unique(groups)]
    error = np.sqrt(5 / 6 * np.square(np.array(without) - whole).sum(axis=0))
    quantile = stats.t.ppf(0.95, Jackknife(labels, groups).n_effective - 1)
    with np.errstate(all="ignore"):
        half = quantile * error / (whole * (1 - whole))
        return expit(logit(whole) - half), expit(logit(whole) + half)


def _compare(band, bounds):
    known = np.isfinite(band.low)
    assert known.mean() > 0.3
    np.testing.assert_allclose(band.low[known], np.asarray(bounds[0])[known])
    np.testing.assert_allclose(band.high[known], np.asarray(bounds[1])[known])


def test_roc_band(patches, bands):
    """Bounds of the curve read along the wrong axis."""

    def curve(labels, scores):
        fpr, tpr, _ = sk.roc_curve(labels, scores, drop_intermediate=False)
        return np.interp(GRID, fpr, tpr)

    low, high = _bounds(patches, curve)
    _compare(bands["roc"], (np.fmax.accumulate(low), np.fmin.accumulate(high[::-1])[::-1]))


def test_precision_recall_band(patches, bands):
    """Precision of the place before the recall is reached."""

    def curve(labels, scores):
        found = []
        for recall in GRID:
            for threshold in np.unique(scores)[::-1]:
                called = scores >= threshold
                if labels[called].sum() >= max(recall * labels.sum() - 1e-9, 0):
                    found.append(labels[called].mean())
                    break
        return np.array(found)

    _compare(bands["precision_recall"], _bounds(patches, curve))


@pytest.mark.parametrize("name", RATES)
def test_bands_of_rates_by_threshold(patches, bands, name):
    """One rate's bounds under another's name."""
    places = (20, 50, 61)

    def curve(labels, scores):
        return np.array([METRICS[name](labels, scores, threshold=GRID[p]) for p in places])

    low, high = _bounds(patches, curve)
    np.testing.assert_allclose(bands[name].low[list(places)], low)
    np.testing.assert_allclose(bands[name].high[list(places)], high)


def test_too_few_groups_give_curves_without_bands(patches):
    """A report that fails after hours of training for want of a band."""
    labels, probabilities, _ = patches
    bands = curve_bands(labels, probabilities, np.tile(["a", "b"], 200), confidence=0.9)
    assert all(np.isnan(band.low).all() for band in bands.values())


def _tied(n=50):
    rng = np.random.default_rng(0)
    labels = rng.integers(2, size=n).astype(bool)
    return labels, np.round(rng.normal(labels, 1), 1)


def test_roc_equals_scikit_learn():
    """Ties drawn as steps give a curve that depends on row order."""
    labels, scores = _tied()
    fpr, tpr = roc_curve(scored(labels, scores))
    expected_fpr, expected_tpr, _ = sk.roc_curve(labels, scores, drop_intermediate=False)
    np.testing.assert_allclose(fpr, expected_fpr)
    np.testing.assert_allclose(tpr, expected_tpr)


def test_precision_recall_equals_scikit_learn():
    """scikit-learn lists it by falling recall and adds the point (0, 1)."""
    labels, scores = _tied()
    recall, precision = precision_recall_curve(scored(labels, scores))
    expected_precision, expected_recall, _ = sk.precision_recall_curve(labels, scores)
    np.testing.assert_allclose(recall, expected_recall[-2::-1])
    np.testing.assert_allclose(precision, expected_precision[-2::-1])
