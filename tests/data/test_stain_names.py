"""A few stains, named by colour."""

import numpy as np
import pandas as pd

from src.data.optical_density import MOMENT_COLUMNS, density_moments, optical_density
from src.data.stain_names import N_STAINS, stain_names


def _patches(n=80, seed=0):
    """Half of them pale, half dark, in other stains; the first is blank."""
    rng = np.random.default_rng(seed)
    dark = np.arange(n) % 2 == 1
    # each kind mixes two stains of its own, so that its densities span a plane of its own
    stains = np.where(
        dark[:, None, None],
        [[0.5, 0.5, 0.7], [0.1, 0.7, 0.7]],
        [[0.65, 0.70, 0.29], [0.07, 0.99, 0.10]],
    )
    amounts = rng.random((n, 16, 16, 2)) * (0.3 + 0.4 * dark[:, None, None, None])
    density = np.einsum("nhwk,nkc->nhwc", amounts, stains)
    pixels = 255 * 10.0**-density
    moments = density_moments(optical_density(np.clip(pixels, 0, 255).astype(np.uint8)))
    table = pd.DataFrame(moments, columns=list(MOMENT_COLUMNS))
    table["id"] = [f"{place:040x}" for place in range(n)]
    table["flags"] = ["blank_white", *[""] * (n - 1)]
    return table, dark


def test_names_tell_the_stains_apart_from_the_palest():
    """Clusters numbered as k-means found them change their name with the seed."""
    patches, dark = _patches()
    names = stain_names(patches, seed=1)
    assert names[1:].notna().all()
    assert pd.isna(names[0])
    assert not set(names[dark]) & set(names[~dark].dropna())
    assert 2 <= names.nunique() <= N_STAINS
    palest, darkest = names.dropna().min(), names.dropna().max()
    assert palest.startswith("A #")
    assert int(palest[3:5], 16) > int(darkest[3:5], 16)


def test_row_order_is_irrelevant():
    patches, _ = _patches()
    shuffled = patches.sample(frac=1, random_state=2)
    names = stain_names(patches, seed=1)
    pd.testing.assert_series_equal(stain_names(shuffled, seed=1).sort_index(), names)
