"""What is measured on every patch while its pixels are at hand: once, at ingest.

Optical density is how much stain light has passed. Densities add up where intensities multiply
(Beer-Lambert), so means and covariances of the stains are linear in the moments kept here. Stain
vectors: Ruifrok & Johnston 2001, Anal. Quant. Cytol. Histol. 23:291, table 1.

The perceptual hash holds the signs of the low frequencies of the cosine transform (pHash: Zauner
2010, *Implementation and benchmarking of perceptual image hash functions*). Brightness, contrast
and compression barely change it. Mirroring a patch flips the signs of the odd frequencies and
transposing it transposes them, so all 8 orientations follow from one hash by bit arithmetic.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from src.patch import SIZE_PX

HAEMATOXYLIN = (0.650, 0.704, 0.286)
EOSIN = (0.072, 0.990, 0.105)

MEAN_COLUMNS = ("od_mean_r", "od_mean_g", "od_mean_b")
COVARIANCE_COLUMNS = ("od_cov_rr", "od_cov_rg", "od_cov_rb", "od_cov_gg", "od_cov_gb", "od_cov_bb")
VARIANCE_COLUMNS = ("od_cov_rr", "od_cov_gg", "od_cov_bb")
MOMENT_COLUMNS = MEAN_COLUMNS + COVARIANCE_COLUMNS

# flags: what is odd about a patch, found by rule, counted and kept, never a reason to drop it
BLANK_WHITE = "blank_white"  # glass
BLANK_BLACK = "blank_black"  # scanner background

# levels of 255; tissue has a standard deviation above 12 in its most varied channel
_BLANK_MAX_STD = 6.0
_WHITE_MIN_MEAN = 200.0
_BLACK_MAX_MEAN = 60.0

_DENSITY_OF_VALUE = -np.log10((np.arange(256, dtype=np.float64) + 1) / 256).astype(np.float32)
_UPPER = np.triu_indices(3)
_PATCHES_AT_ONCE = 16  # their densities stay in the processor's cache

_SIDE = 8  # frequencies 0 to 7 of each axis; bit 8u + v is the sign of frequency (u, v)
_POOLED_PX = 32
_MIN_STRUCTURE = 0.01  # in density; below it the signs are those of the scanner's noise
_ODD_ROWS = np.uint64(sum(1 << (8 * u + v) for u in range(1, 8, 2) for v in range(8)))
_ODD_COLUMNS = np.uint64(sum(1 << (8 * u + v) for u in range(8) for v in range(1, 8, 2)))
_ALL_BUT_DC = np.uint64(2**64 - 2)


@dataclass(frozen=True)
class Measurements:
    """Of n patches.

    Attributes
    ----------
    blanks : n blank flags, '' for none
    hashes : (n,) uint64, perceptual hash
    hash_known : (n,) bool, False where the patch is blank or without structure
    moments : (n, 9) float32, mean and covariance of optical density; NaN where unread
    sums, squares : (3,) int64, sum and sum of squares of each channel over all read pixels
    """

    blanks: list[str]
    hashes: NDArray[np.uint64]
    hash_known: NDArray[np.bool_]
    moments: NDArray[np.float32]
    sums: NDArray[np.int64]
    squares: NDArray[np.int64]

    @staticmethod
    def joined(parts: Sequence[Measurements]) -> Measurements:
        """The measurements of all parts, one after the other."""
        if not parts:
            return _unmeasured(0)
        return Measurements(
            blanks=[blank for part in parts for blank in part.blanks],
            hashes=np.concatenate([part.hashes for part in parts]),
            hash_known=np.concatenate([part.hash_known for part in parts]),
            moments=np.concatenate([part.moments for part in parts]),
            sums=np.sum([part.sums for part in parts], axis=0),
            squares=np.sum([part.squares for part in parts], axis=0),
        )


def _unmeasured(n: int) -> Measurements:
    return Measurements(
        blanks=[""] * n,
        hashes=np.zeros(n, np.uint64),
        hash_known=np.zeros(n, np.bool_),
        moments=np.full((n, len(MOMENT_COLUMNS)), np.nan, np.float32),
        sums=np.zeros(3, np.int64),
        squares=np.zeros(3, np.int64),
    )


def measure(pixels: NDArray[np.uint8], readable: NDArray[np.bool_]) -> Measurements:
    """Measure (n, 96, 96, 3) patches; those that aren't ``readable`` (n,) come out unmeasured."""
    measured = _unmeasured(len(pixels))
    for position in np.flatnonzero(readable).tolist():
        sums, squares = _channel_sums(pixels[position])
        measured.blanks[position] = blank_flag(*channel_moments(sums, squares, n_patches=1))
        np.add(measured.sums, sums, out=measured.sums)
        np.add(measured.squares, squares, out=measured.squares)
    for start in range(0, len(pixels), _PATCHES_AT_ONCE):
        part = slice(start, start + _PATCHES_AT_ONCE)
        density = optical_density(pixels[part])
        measured.moments[part] = density_moments(density)
        measured.hashes[part], measured.hash_known[part] = perceptual_hashes(density)
    blank = np.array([bool(flag) for flag in measured.blanks], dtype=np.bool_)
    measured.moments[~readable] = np.nan
    measured.hash_known[~readable | blank] = False
    return measured


def blank_flag(mean: NDArray[np.float64], std: NDArray[np.float64]) -> str:
    """``blank_white``, ``blank_black`` or '' from one patch's (3,) channel moments, 0 to 255.

    A blank patch varies by less than 6 levels (standard deviation) in every channel; it is white
    from a mean of 200 in every channel up, black up to a mean of 60.
    """
    if (std >= _BLANK_MAX_STD).any():
        return ""
    if (mean >= _WHITE_MIN_MEAN).all():
        return BLANK_WHITE
    return BLANK_BLACK if (mean <= _BLACK_MAX_MEAN).all() else ""


def channel_moments(
    sums: NDArray[np.int64], squares: NDArray[np.int64], *, n_patches: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(3,) mean and (3,) standard deviation of each channel, in levels of 0 to 255."""
    n = n_patches * SIZE_PX**2
    mean = sums / n
    # n·Σx² − (Σx)² in whole numbers of any size: no cancellation
    spread = [n * int(q) - int(s) ** 2 for s, q in zip(sums, squares, strict=True)]
    return mean, np.sqrt(np.array(spread, dtype=np.float64)) / n


def _channel_sums(pixels: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(3,) sum and (3,) sum of squares over one (96, 96, 3) patch."""
    # (96, 288): long rows add up an order of magnitude faster than (9216, 3)
    levels = pixels.reshape(SIZE_PX, -1).astype(np.uint32)
    sums = levels.sum(axis=0, dtype=np.uint32).reshape(-1, 3).sum(axis=0, dtype=np.int64)
    levels *= levels
    squares = levels.sum(axis=0, dtype=np.uint32).reshape(-1, 3).sum(axis=0, dtype=np.int64)
    return sums, squares


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


def stain_densities(mean_density: NDArray[np.floating]) -> NDArray[np.float64]:
    """Unmix optical densities (n, 3) into haematoxylin and eosin (n, 2), by least squares.

    Unmixing is linear, so the mean density of a patch gives its mean stain.
    """
    vectors = np.array([HAEMATOXYLIN, EOSIN])
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(mean_density @ np.linalg.pinv(vectors), dtype=np.float64)


def perceptual_hashes(
    density: NDArray[np.float32],
) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
    """Hash (n,) of each patch of optical densities (n, 3, 96, 96), and whether it means anything.

    Bit 0, the mean, is always 0. The second array is False for patches without structure, whose
    hash is that of noise and must not be compared.
    """
    side_px = density.shape[2]
    position = np.arange(side_px) // (side_px // _POOLED_PX)
    # (8, side): averages neighbouring pixels, then takes cosines; scaled to densities
    cosine = np.cos(np.pi * np.arange(_SIDE)[:, None] * (2 * position + 1) / (2 * _POOLED_PX))
    rows = (cosine / side_px).astype(np.float32)
    grey = density.sum(axis=1) / np.float32(3)
    coefficients = rows @ grey @ rows.T  # (n, 8, 8)
    bits = (coefficients > 0).reshape(len(density), -1)
    weights = np.uint64(1) << np.arange(64, dtype=np.uint64)
    hashes = (bits * weights).sum(axis=1, dtype=np.uint64) & _ALL_BUT_DC
    power = (coefficients**2).sum(axis=(1, 2)) - coefficients[:, 0, 0] ** 2
    return hashes, np.sqrt(np.maximum(power, 0)) >= _MIN_STRUCTURE


def orientations(hashes: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Hashes of the same patches in all 8 orientations: (n,) → (n, 8), the one given first."""
    # bytes are rows of frequencies: unpacked to (n, 8, 8), transposed, packed again
    octets = hashes.astype("<u8").view(np.uint8).reshape(-1, _SIDE)
    bits = np.unpackbits(octets, axis=1, bitorder="little").reshape(-1, _SIDE, _SIDE)
    swapped = bits.transpose(0, 2, 1).reshape(-1, 64)
    transposed = np.packbits(swapped, axis=1, bitorder="little").view("<u8").reshape(-1)
    turned = [
        (base ^ flip) & _ALL_BUT_DC
        for base in (hashes, transposed.astype(np.uint64))
        for flip in (np.uint64(0), _ODD_ROWS, _ODD_COLUMNS, _ODD_ROWS ^ _ODD_COLUMNS)
    ]
    return np.stack(turned, axis=1)
