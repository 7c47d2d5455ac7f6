"""The colour baseline: right histograms, separates colour, learns nothing from shuffled labels."""

import numpy as np
import pandas as pd
import pytest

from src.evaluation.baseline import (
    N_FEATURES,
    TITLES,
    baseline_probability,
    colour_histograms,
    fit_baselines,
    stronger,
)
from src.evaluation.metrics import auroc
from src.system.errors import ProjectError


def _noise(n, seed=0, side=16):
    return np.random.default_rng(seed).integers(0, 256, (n, side, side, 3), dtype=np.uint8)


def test_equals_numpy_histograms_in_the_order_of_rows():
    """Offsets that run into the next patch, rows mixed up, a chunk's end dropped."""
    pixels = _noise(150)
    rows = np.random.default_rng(1).permutation(150)[:131]
    histograms = colour_histograms(pixels, rows)
    for row, histogram in zip(rows, histograms, strict=True):
        flat = pixels[row].reshape(-1, 3)
        channels = [np.histogram(flat[:, c], bins=16, range=(0, 256))[0] for c in range(3)]
        coarse = np.histogramdd(flat, bins=4, range=[(0, 256)] * 3)[0].ravel()
        expected = np.concatenate([*channels, coarse]) / 256
        np.testing.assert_allclose(histogram, expected, rtol=1e-6)


def _coloured(n, labels, seed):
    pixels = _noise(n, seed)
    pixels[..., 0] = np.where(labels[:, None, None] == 1, pixels[..., 0] // 2, pixels[..., 0])
    return colour_histograms(pixels, np.arange(n))


def test_separates_patches_by_colour_and_not_by_shuffled_labels():
    """A leak from train to the patches scored, or labels matched to other rows."""
    rng = np.random.default_rng(0)
    labels = rng.integers(2, size=200)
    train, holdout = _coloured(200, labels, seed=1), _coloured(200, labels, seed=2)
    for model in fit_baselines(train, labels, seed=1).values():
        assert auroc(labels, baseline_probability(model, holdout)) > 0.99
    for model in fit_baselines(train, rng.permutation(labels), seed=1).values():
        shuffled = baseline_probability(model, holdout)
        assert 0.3 < auroc(rng.permutation(labels), shuffled) < 0.7


def test_is_deterministic():
    labels = np.arange(60) % 2
    histograms = _coloured(60, labels, seed=1)
    first, second = (fit_baselines(histograms, labels, seed=1) for _ in range(2))
    assert first.keys() == second.keys() == TITLES.keys()
    for name in TITLES:
        np.testing.assert_array_equal(
            *(baseline_probability(fitted[name], histograms) for fitted in (first, second))
        )


@pytest.mark.parametrize(
    ("logistic", "trees", "name"),
    [(0.1, 0.2, "trees"), (0.2, 0.1, "logistic"), (0.1, 0.1, "logistic")],
)
def test_stronger_is_by_auroc_and_of_equals_the_first(logistic, trees, name):
    labels = np.arange(20) % 2
    rest = np.linspace(0.5, 0.6, 20)
    columns = {  # so many tumour patches above all normal ones
        f"baseline_{column}": np.where((labels == 1) & (np.arange(20) < 20 * share * 2), 1, rest)
        for column, share in (("logistic", logistic), ("trees", trees))
    }
    assert stronger(pd.DataFrame({"label": labels, **columns})) == f"baseline_{name}"


def test_one_class_in_train_is_refused():
    with pytest.raises(ProjectError, match="both classes in train; got 5 patches of one"):
        fit_baselines(np.zeros((5, N_FEATURES), np.float32), np.zeros(5, int), seed=1)
