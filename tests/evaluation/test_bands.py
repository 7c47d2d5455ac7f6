"""Bands against scikit-learn in the same resamples."""

import numpy as np
import pytest
from sklearn.metrics import roc_curve

from src.evaluation.bands import GRID, RATES, curve_bands
from src.evaluation.metrics import METRICS, bin_of


@pytest.fixture(scope="module")
def patches():
    rng = np.random.default_rng(0)
    labels = rng.integers(2, size=200)
    groups = np.array([f"g{g}" for g in rng.integers(12, size=200)])
    return labels, np.clip(np.round(rng.normal(0.4 + 0.2 * labels, 0.2), 2), 0, 1), groups


@pytest.fixture(scope="module")
def resamples(patches):
    """The patches of each of 60 draws, put together one by one."""
    rng, (labels, probabilities, groups) = np.random.default_rng(3), patches
    names = np.unique(groups)
    drawn = names[rng.integers(len(names), size=(60, len(names)))]
    rows = [np.concatenate([np.flatnonzero(groups == name) for name in d]) for d in drawn]
    return [(labels[r], probabilities[r]) for r in rows]


@pytest.fixture(scope="module")
def bands(patches):
    return curve_bands(*patches, n_resamples=60, confidence=0.9, seed=3)


def _bounds(values):
    return np.nanquantile(np.array(values), [0.05, 0.95], axis=0)


def test_roc_band(bands, resamples):
    """Bounds of the curve read along the wrong axis."""
    curves = [roc_curve(labels, scores, drop_intermediate=False) for labels, scores in resamples]
    expected = _bounds([np.interp(GRID, fpr, tpr) for fpr, tpr, _ in curves])
    np.testing.assert_allclose((bands["roc"].low, bands["roc"].high), expected)


def test_precision_recall_band(bands, resamples):
    """Precision of the place before the recall is reached."""

    def precision(labels, scores):
        found = []
        for recall in GRID:
            for threshold in np.unique(scores)[::-1]:
                called = scores >= threshold
                if labels[called].sum() >= max(recall * labels.sum() - 1e-9, 0):
                    found.append(labels[called].mean())
                    break
        return found

    expected = _bounds([precision(labels, scores) for labels, scores in resamples])
    band = bands["precision_recall"]
    np.testing.assert_allclose((band.low, band.high), expected)


@pytest.mark.parametrize("name", RATES)
def test_bands_of_rates_by_threshold(bands, resamples, name):
    """One rate's bounds under another's name."""
    for place in (20, 50, 61):
        values = [METRICS[name](y, s, threshold=GRID[place]) for y, s in resamples]
        found = bands[name].low[place], bands[name].high[place]
        np.testing.assert_allclose(found, _bounds(values))


def test_reliability_band_is_by_bin(bands, resamples):
    place = 7
    values = [
        np.mean(labels[bin_of(scores) == place])
        for labels, scores in resamples
        if (bin_of(scores) == place).any()
    ]
    band = bands["reliability"]
    np.testing.assert_allclose((band.low[place], band.high[place]), _bounds(values))
