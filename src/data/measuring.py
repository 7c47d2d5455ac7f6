"""What is measured on every patch while its pixels are at hand: once, at ingest."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from src.data.flags import blank_flag
from src.data.optical_density import MOMENT_COLUMNS, density_moments, optical_density
from src.data.perceptual_hash import perceptual_hashes
from src.data.tiff import PATCH_SIZE_PX

_PATCHES_AT_ONCE = 16  # their densities stay in the processor's cache

Sums = tuple[NDArray[np.int64], NDArray[np.int64]]


@dataclass(frozen=True)
class Measurements:
    """Of n patches.

    Attributes
    ----------
    blanks : n blank flags (``src.data.flags``), '' for none
    hashes : (n,) uint64, perceptual hash
    hash_known : (n,) bool, False where the patch is blank or without structure
    moments : (n, 9) float32, mean and covariance of optical density; NaN where unread
    """

    blanks: list[str]
    hashes: NDArray[np.uint64]
    hash_known: NDArray[np.bool_]
    moments: NDArray[np.float32]

    @staticmethod
    def joined(parts: Sequence["Measurements"]) -> "Measurements":
        """The measurements of all parts, one after the other."""
        if not parts:
            return unmeasured(0)
        return Measurements(
            blanks=[blank for part in parts for blank in part.blanks],
            hashes=np.concatenate([part.hashes for part in parts]),
            hash_known=np.concatenate([part.hash_known for part in parts]),
            moments=np.concatenate([part.moments for part in parts]),
        )


def unmeasured(n: int) -> Measurements:
    """What is known of n patches that couldn't be read."""
    return Measurements(
        blanks=[""] * n,
        hashes=np.zeros(n, np.uint64),
        hash_known=np.zeros(n, np.bool_),
        moments=np.full((n, len(MOMENT_COLUMNS)), np.nan, np.float32),
    )


def measure(
    pixels: NDArray[np.uint8], readable: NDArray[np.bool_]
) -> tuple[Measurements, NDArray[np.int64], NDArray[np.int64]]:
    """Measure (n, 96, 96, 3) patches; also (3,) sum and sum of squares of each channel over them.

    Patches that aren't ``readable`` (n,) are left out of the sums and come out unmeasured.
    """
    measured = unmeasured(len(pixels))
    sums, squares = np.zeros(3, np.int64), np.zeros(3, np.int64)
    for position in np.flatnonzero(readable).tolist():
        patch_sums, patch_squares = _channel_sums(pixels[position])
        mean, std = channel_moments(patch_sums, patch_squares, n_patches=1)
        measured.blanks[position] = blank_flag(mean, std)
        sums += patch_sums
        squares += patch_squares
    for start in range(0, len(pixels), _PATCHES_AT_ONCE):
        part = slice(start, start + _PATCHES_AT_ONCE)
        density = optical_density(pixels[part])
        measured.moments[part] = density_moments(density)
        measured.hashes[part], measured.hash_known[part] = perceptual_hashes(density)
    blank = np.array([bool(flag) for flag in measured.blanks], dtype=np.bool_)
    measured.moments[~readable] = np.nan
    measured.hash_known[~readable | blank] = False
    return measured, sums, squares


def channel_moments(
    sums: NDArray[np.int64], squares: NDArray[np.int64], *, n_patches: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(3,) mean and (3,) standard deviation of each channel, in levels of 0 to 255."""
    n = n_patches * PATCH_SIZE_PX**2
    mean = sums / n
    # n·Σx² − (Σx)² in whole numbers of any size: no cancellation
    spread = [n * int(q) - int(s) ** 2 for s, q in zip(sums, squares, strict=True)]
    return mean, np.sqrt(np.array(spread, dtype=np.float64)) / n


def _channel_sums(pixels: NDArray[np.uint8]) -> Sums:
    # (96, 288): long rows add up an order of magnitude faster than (9216, 3)
    levels = pixels.reshape(PATCH_SIZE_PX, -1).astype(np.uint32)
    sums = levels.sum(axis=0, dtype=np.uint32).reshape(-1, 3).sum(axis=0, dtype=np.int64)
    levels *= levels
    squares = levels.sum(axis=0, dtype=np.uint32).reshape(-1, 3).sum(axis=0, dtype=np.int64)
    return sums, squares
