"""Near-duplicates: patches whose perceptual hashes nearly agree in one of the 8 orientations.

The search is exact: hashes within d bits of each other agree wholly in at least one of d + 1 bands
of bits (pigeonhole), so only patches that share a band are compared.
"""

from collections.abc import Iterator

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from src.data.components import components_of_pairs
from src.data.optical_density import MEAN_COLUMNS
from src.data.perceptual_hash import orientations

# Of 63 bits. Measured on the 4,786 structured real patches in ``benchmarks.near_duplicates``, whose
# table stands in docs/grouping.md.
MAX_DISTANCE = 3

# of the channels' mean and standard deviation; brightness ± 5 % moves them by 0.03
MAX_DENSITY_APART = 0.04

_CANDIDATES_AT_ONCE = 2_000_000
_VARIANCE_COLUMNS = ("od_cov_rr", "od_cov_gg", "od_cov_bb")
Pairs = NDArray[np.int64]


def near_duplicate_sets(patches: pd.DataFrame, *, max_distance: int = MAX_DISTANCE) -> pd.Series:
    """Key of each patch's set of near-duplicates, Int64, null where it has none.

    Near-duplicates of near-duplicates are in one set. Hashes alone would, among 220,000 patches,
    also join some that have nothing to do with each other: the colours must agree as well.

    Parameters
    ----------
    patches
        n rows with columns phash (null: matches nothing) and ``MOMENT_COLUMNS``.
    """
    known = patches[patches["phash"].notna()]
    hashes = known["phash"].to_numpy(dtype=np.uint64)
    pairs = near_duplicate_pairs(hashes, max_distance=max_distance)
    pairs = pairs[_same_colours(known, pairs)]
    component = components_of_pairs(pairs, len(known))
    keys = pd.Series(component, index=known.index, dtype="Int64")
    in_a_set = np.bincount(component, minlength=1)[component] > 1
    return keys.where(in_a_set).reindex(patches.index)


def near_duplicate_pairs(hashes: NDArray[np.uint64], *, max_distance: int) -> Pairs:
    """Pairs i < j, (m, 2), of the (n,) hashes within ``max_distance`` bits, that join all such.

    The distance is the smallest over the 8 orientations of one of the two. Of many equal hashes
    each is paired with the first only, or k copies of one patch would make k² pairs.
    """
    values, first, which = np.unique(hashes, return_index=True, return_inverse=True)
    turned = orientations(values)
    found = [np.stack([first[which], np.arange(len(hashes))], axis=1)]
    for mask in _bands(max_distance + 1):
        for left, right in _sharing_a_band(values, turned, mask):
            distance = np.bitwise_count(values[left, None] ^ turned[right]).min(axis=1)
            near = distance <= max_distance
            found.append(np.stack([first[left[near]], first[right[near]]], axis=1))
    pairs = np.sort(np.concatenate(found), axis=1)
    return np.unique(pairs[pairs[:, 0] != pairs[:, 1]], axis=0).astype(np.int64)


def colours(patches: pd.DataFrame) -> NDArray[np.float64]:
    """(n, 6) mean and standard deviation of the optical density of each channel."""
    means = patches[list(MEAN_COLUMNS)].to_numpy(dtype=np.float64)
    variances = patches[list(_VARIANCE_COLUMNS)].to_numpy(dtype=np.float64)
    return np.concatenate([means, np.sqrt(np.maximum(variances, 0))], axis=1)


def _same_colours(patches: pd.DataFrame, pairs: Pairs) -> NDArray[np.bool_]:
    """(m,) whether mean and spread of each channel's optical density agree."""
    values = colours(patches)
    apart = np.abs(values[pairs[:, 0]] - values[pairs[:, 1]])
    return np.asarray((apart <= MAX_DENSITY_APART).all(axis=1))


def _bands(n: int) -> list[np.uint64]:
    """Masks that share out bits 1 to 63 among ``n`` bands, every n-th bit to one.

    Neighbouring frequencies go together in tissue: spread bands differ more between patches.
    """
    return [np.uint64(sum(1 << bit for bit in range(1, 64) if bit % n == k)) for k in range(n)]


def _sharing_a_band(
    hashes: NDArray[np.uint64], turned: NDArray[np.uint64], mask: np.uint64
) -> Iterator[Pairs]:
    """Candidates (2, k), left < right, in pieces: hash and a turned hash agree in the band.

    ``hashes`` (n,), ``turned`` (n, 8).
    """
    n, n_turned = turned.shape
    bands, band = np.unique(hashes & mask, return_inverse=True)
    members = np.sort(band * n + np.arange(n))  # by band, then by index
    wanted = (turned & mask).ravel()
    right = np.arange(n * n_turned) // n_turned
    at = np.minimum(np.searchsorted(bands, wanted), len(bands) - 1)
    # within the band, only the hashes before this one: each pair is met from both sides
    first = np.searchsorted(members, at * n)
    count = np.where(bands[at] == wanted, np.searchsorted(members, at * n + right) - first, 0)
    ends = np.cumsum(count)
    start = 0
    while start < len(wanted):
        done = int(ends[start - 1]) if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, done + _CANDIDATES_AT_ONCE)))
        part = slice(start, stop)
        of = np.repeat(np.arange(start, stop), count[part])
        offset = np.arange(len(of)) - np.repeat(ends[part] - count[part] - done, count[part])
        yield np.stack([members[first[of] + offset] % n, right[of]])
        start = stop
