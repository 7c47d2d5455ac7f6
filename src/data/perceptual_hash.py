"""A 64-bit perceptual hash of a patch, and what it becomes when the patch is turned or mirrored.

The hash holds the signs of the low frequencies of the cosine transform (pHash: Zauner 2010,
*Implementation and benchmarking of perceptual image hash functions*). Brightness, contrast and
compression barely change it. Mirroring a patch flips the signs of the odd frequencies and
transposing it transposes them, so all 8 orientations follow from one hash by bit arithmetic.
"""

import numpy as np
from numpy.typing import NDArray

N_ORIENTATIONS = 8

_SIDE = 8  # frequencies 0 to 7 of each axis; bit 8u + v is the sign of frequency (u, v)
_POOLED_PX = 32
# densities; below it the signs are those of the scanner's noise
_MIN_STRUCTURE = 0.01

_ODD_ROWS = np.uint64(sum(1 << (8 * u + v) for u in range(1, 8, 2) for v in range(8)))
_ODD_COLUMNS = np.uint64(sum(1 << (8 * u + v) for u in range(8) for v in range(1, 8, 2)))
_ALL_BUT_DC = np.uint64(2**64 - 2)


def perceptual_hashes(
    density: NDArray[np.float32],
) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
    """Hash (n,) of each patch of optical densities (n, 3, 96, 96), and whether it means anything.

    Bit 0, the mean, is always 0. The second array is False for patches without structure, whose
    hash is that of noise and must not be compared.
    """
    rows = _low_frequencies(density.shape[2])
    grey = density.sum(axis=1) / np.float32(3)
    coefficients = rows @ grey @ rows.T
    bits = (coefficients > 0).reshape(len(density), -1)
    weights = np.uint64(1) << np.arange(64, dtype=np.uint64)
    hashes = (bits * weights).sum(axis=1, dtype=np.uint64) & _ALL_BUT_DC
    power = (coefficients**2).sum(axis=(1, 2)) - coefficients[:, 0, 0] ** 2
    return hashes, np.sqrt(np.maximum(power, 0)) >= _MIN_STRUCTURE


def orientations(hashes: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Hashes of the same patches in all 8 orientations: (n,) → (n, 8), the one given first."""
    turned = []
    for base in (hashes, _transposed(hashes)):
        for flip in (np.uint64(0), _ODD_ROWS, _ODD_COLUMNS, _ODD_ROWS ^ _ODD_COLUMNS):
            turned.append((base ^ flip) & _ALL_BUT_DC)
    return np.stack(turned, axis=1)


def _low_frequencies(side_px: int) -> NDArray[np.float32]:
    """(8, side) rows that average neighbouring pixels, then take cosines; scaled to densities."""
    pool = side_px // _POOLED_PX
    position = np.arange(side_px) // pool
    cosine = np.cos(np.pi * np.arange(_SIDE)[:, None] * (2 * position + 1) / (2 * _POOLED_PX))
    return np.asarray(cosine / side_px, dtype=np.float32)


def _transposed(hashes: NDArray[np.uint64]) -> NDArray[np.uint64]:
    octets = hashes.astype("<u8").view(np.uint8).reshape(-1, _SIDE)
    bits = np.unpackbits(octets, axis=1, bitorder="little").reshape(-1, _SIDE, _SIDE)
    swapped = bits.transpose(0, 2, 1).reshape(-1, 64)
    packed = np.packbits(swapped, axis=1, bitorder="little")
    return packed.view("<u8").reshape(-1).astype(np.uint64)
