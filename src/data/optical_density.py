"""Optical density: how much stain light has passed, and its moments over a patch.

Densities add up where intensities multiply (Beer-Lambert), so means and covariances of the stains
are linear in the moments kept here. Stain vectors: Ruifrok & Johnston 2001, Anal. Quant. Cytol.
Histol. 23:291, table 1.
"""

import numpy as np
from numpy.typing import NDArray

HAEMATOXYLIN = (0.650, 0.704, 0.286)
EOSIN = (0.072, 0.990, 0.105)

MEAN_COLUMNS = ("od_mean_r", "od_mean_g", "od_mean_b")
COVARIANCE_COLUMNS = ("od_cov_rr", "od_cov_rg", "od_cov_rb", "od_cov_gg", "od_cov_gb", "od_cov_bb")
MOMENT_COLUMNS = MEAN_COLUMNS + COVARIANCE_COLUMNS

_DENSITY_OF_VALUE = -np.log10((np.arange(256, dtype=np.float64) + 1) / 256).astype(np.float32)
_UPPER = np.triu_indices(3)


def optical_density(patches: NDArray[np.uint8]) -> NDArray[np.float32]:
    """-log10((value + 1) / 256), 0 (white) to 2.41 (black): (n, h, w, 3) → (n, 3, h, w).

    Channels come first: arithmetic on whole planes is several times faster.
    """
    density = np.empty((len(patches), 3, *patches.shape[1:3]), np.float32)
    for channel in range(3):
        np.take(_DENSITY_OF_VALUE, patches[..., channel], out=density[:, channel], mode="clip")
    return density


def density_moments(density: NDArray[np.float32]) -> NDArray[np.float32]:
    """Mean and covariance of the channels over each patch: (n, 3, h, w) → (n, 9).

    In the order of ``MOMENT_COLUMNS``; the covariance divides by the number of pixels.
    """
    planes = density.reshape(len(density), 3, -1)
    mean = planes.mean(axis=2, dtype=np.float32)
    centred = planes - mean[:, :, None]
    covariance = centred @ centred.transpose(0, 2, 1) / planes.shape[2]
    return np.concatenate([mean, covariance[:, _UPPER[0], _UPPER[1]]], axis=1)


def stain_matrix() -> NDArray[np.float64]:
    """(3, 2): multiplied from the right, unmixes RGB densities into haematoxylin and eosin."""
    vectors = np.array([HAEMATOXYLIN, EOSIN])
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(np.linalg.pinv(vectors), dtype=np.float64)


def stain_densities(mean_density: NDArray[np.floating]) -> NDArray[np.float64]:
    """Unmix optical densities (n, 3) into haematoxylin and eosin (n, 2), by least squares.

    Unmixing is linear, so the mean density of a patch gives its mean stain.
    """
    return np.asarray(mean_density @ stain_matrix(), dtype=np.float64)
