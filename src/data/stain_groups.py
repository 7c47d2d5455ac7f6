"""Stain clusters: a stand-in for slides where nobody says which slide a patch was cut from.

All pixels of a slide mix the same two stains, so their optical densities lie near one plane, which
its two stain vectors span (Macenko et al. 2009, ISBI, 1107). The plane's normal depends on
stains and scanner and hardly on how much tissue or how many nuclei a patch shows. Patches are
clustered by it. Clusters aren't slides: see docs/grouping.md for how well they do.
"""

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from src.data.optical_density import COVARIANCE_COLUMNS

MIN_CLUSTERS, MAX_CLUSTERS = 10, 200
_FIT_PATCHES = 20_000
_RESTARTS = 4


def stain_clusters(patches: pd.DataFrame, *, seed: int, n_clusters: int | None = None) -> pd.Series:
    """Cluster number of each patch, Int64 from 0, null for blank patches; index as given.

    The same for any order of the rows, given ``seed``.

    Parameters
    ----------
    patches
        n rows with columns id, flags and the covariances of optical density.
    n_clusters
        At most; None: :func:`number_of_clusters`.
    """
    from sklearn.cluster import KMeans

    ordered = patches.sort_values("id")
    stained = ordered[~ordered["flags"].str.contains("blank_", regex=False)]
    normals = stain_plane_normals(stained[list(COVARIANCE_COLUMNS)].to_numpy(dtype=np.float64))
    if stained.empty:
        return pd.Series(pd.NA, index=patches.index, dtype="Int64")
    drawn = np.sort(np.random.default_rng(seed).permutation(len(normals))[:_FIT_PATCHES])
    signatures = _standardised(normals, normals[drawn])
    wanted = n_clusters or number_of_clusters(len(normals))
    wanted = min(wanted, len(np.unique(signatures[drawn], axis=0)))
    model = KMeans(wanted, n_init=_RESTARTS, random_state=seed).fit(signatures[drawn])
    numbers = model.predict(signatures)
    return pd.Series(numbers, index=stained.index, dtype="Int64").reindex(patches.index)


def number_of_clusters(n_patches: int) -> int:
    """About √n / 2, from 10 to 200: 20 for 1,600 patches, 200 for Kaggle's 220,025 of 216 slides.

    More clusters than slides cost little: a slide falls apart into a few, most of them near it.
    """
    return int(np.clip(round(np.sqrt(n_patches) / 2), MIN_CLUSTERS, MAX_CLUSTERS))


def stain_plane_normals(covariances: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n, 3) unit normals of the stain planes from (n, 6) covariances, green component ≥ 0.

    The normal is the direction in which densities vary least.
    """
    row, column = np.triu_indices(3)
    matrices = np.empty((len(covariances), 3, 3))
    matrices[:, row, column] = covariances
    matrices[:, column, row] = covariances
    _, vectors = np.linalg.eigh(matrices)  # in ascending order of variance
    normals = vectors[:, :, 0]
    return np.asarray(normals * np.where(normals[:, 1:2] < 0, -1.0, 1.0), dtype=np.float64)


def _standardised(
    values: NDArray[np.float64], reference: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Centred and scaled by the median and quartiles of ``reference``; outliers pulled in."""
    low, median, high = np.percentile(reference, [25, 50, 75], axis=0)
    scaled = (values - median) / np.maximum(high - low, 1e-6)
    return np.asarray(np.clip(scaled, -3.0, 3.0), dtype=np.float64)
