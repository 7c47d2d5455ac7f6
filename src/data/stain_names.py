"""A few stains to report results by, each named by its mean colour."""

import numpy as np
import pandas as pd

from src.data.optical_density import MEAN_COLUMNS
from src.data.stain_groups import stain_clusters

N_STAINS = 4


def stain_names(patches: pd.DataFrame, *, seed: int) -> pd.Series:
    """Name of each patch's stain, ``A #c9a2c4`` and so on from the palest, null for blank patches.

    Clusters as in :func:`src.data.stain_groups.stain_clusters`, fewer and so coarser than the
    groups of a split; labels aren't looked at. ``patches`` also has the means of optical density.
    """
    numbers = stain_clusters(patches, seed=seed, n_clusters=N_STAINS)
    means = patches[list(MEAN_COLUMNS)].groupby(numbers).mean()
    palest_first = means.loc[means.sum(axis=1).sort_values().index]
    names = {
        number: f"{chr(ord('A') + place)} {_colour(density)}"
        for place, (number, density) in enumerate(
            zip(palest_first.index, palest_first.to_numpy(dtype=np.float64), strict=True)
        )
    }
    return numbers.map(names).astype("str")


def _colour(density: np.ndarray) -> str:
    red, green, blue = np.clip(np.round(256 * 10.0**-density - 1), 0, 255).astype(int)
    return f"#{red:02x}{green:02x}{blue:02x}"
