"""Groups: patches that must stay on one side of a split.

A group is a connected component of patches that share a key: the slide they were cut from or its
stand-in, their exact pixels, their set of near-duplicates. A further reason to keep patches
together is one more column of keys.

Near-duplicates are patches whose perceptual hashes nearly agree in one of the 8 orientations. The
search is exact: hashes within d bits of each other agree wholly in at least one of d + 1 bands of
bits (pigeonhole), so only patches that share a band are compared.

Stain clusters stand in for slides where nobody says which slide a patch was cut from. All pixels of
a slide mix the same two stains, so their optical densities are near one plane, which its two stain
vectors span (Macenko et al. 2009, ISBI, 1107). The plane's normal depends on stains and scanner and
hardly on how much tissue or how many nuclei a patch shows. Patches are clustered by it. Clusters
aren't slides: see docs/grouping.md for how well they do.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components as components_of
from sklearn.cluster import KMeans

from src.data.dataset import SINGLE
from src.data.measurements import (
    COVARIANCE_COLUMNS,
    MEAN_COLUMNS,
    VARIANCE_COLUMNS,
    orientations,
)
from src.system.errors import ProjectError

GroupBy = Literal["auto", "slide", "stain", "patch"]

GROUPS_ARE = {
    "slide": "slides",
    "stain": "stain clusters, a stand-in for slides",
    "patch": "single patches",
}

# Of 63 bits. Measured on the 4,786 structured real patches in ``benchmarks.near_duplicates``, whose
# table is in docs/grouping.md.
MAX_DISTANCE = 3
# of the channels' mean and standard deviation; brightness ± 5 % moves them by 0.03
MAX_DENSITY_APART = 0.04
_CANDIDATES_AT_ONCE = 2_000_000

MIN_CLUSTERS, MAX_CLUSTERS = 10, 200
N_STAINS = 4  # that results are reported by
_FIT_PATCHES = 20_000
_RESTARTS = 4


class GroupingError(ProjectError):
    """These patches can't be grouped as asked."""


@dataclass(frozen=True)
class Grouping:
    """The group of each of n labelled patches, and what may be said of them.

    Attributes
    ----------
    group_by : slide, stain or patch
    names : (n,) str, equal for patches of one group
    near : (n,) Int64, key of the set of near-duplicates, null where there is none
    train_only : (n,) bool, True in every group that holds a patch of unknown slide, or a blank one
        where stain clusters stand in: nobody can tell which slide such a patch shares
    slide_disjoint : whether keeping groups whole keeps slides whole; needs every patch's slide
    n_slides : known slides
    n_slides_joined : slides (or their stand-ins) that share a group with another, by identical
        pixels or near-duplicates
    n_without_slide : patches of unknown slide
    n_without_stain : blank patches, where stain clusters are the groups
    n_duplicates : patches whose exact pixels another patch has too
    n_near_duplicates : patches with a near-duplicate, exact ones included
    """

    group_by: str
    names: NDArray[np.str_]
    near: pd.Series
    train_only: NDArray[np.bool_]
    slide_disjoint: bool
    n_slides: int
    n_slides_joined: int
    n_without_slide: int
    n_without_stain: int
    n_duplicates: int
    n_near_duplicates: int


def group_patches(patches: pd.DataFrame, *, group_by: GroupBy, seed: int) -> Grouping:
    """Group n labelled patches, whatever the order of the rows.

    A group bears the name of its slide (the first in alphabetical order where several are joined),
    ``stain:<cluster>``, or ``patch:<first id>`` where it has neither. Where stain clusters are the
    groups, patches that look alike are in the cluster of most of them.

    Parameters
    ----------
    patches : columns id (unique), slide (null where unknown), sha256, flags, phash and the moments
        of optical density
    group_by : auto is slide where any slide is known, else stain
    seed : of the stain clusters

    Raises
    ------
    GroupingError
        ``slide`` was asked for and no slide is known.
    """
    patches = patches.reset_index(drop=True)
    slides, sha256 = patches["slide"], patches["sha256"]
    slide_known = slides.notna().to_numpy(dtype=bool)
    if group_by == "slide" and not slide_known.any():
        raise GroupingError(
            "split.group_by is slide, but no patch's slide is known; name a table in "
            "ingest.slides, or set split.group_by to stain (a stand-in) or patch"
        )
    if group_by == "auto":
        group_by = "slide" if slide_known.any() else "stain"
    near = near_duplicate_sets(patches)
    look_alikes = pd.Series(connected_components([sha256, near]))
    # (n,) str, what keeps patches together besides their pixels; null where nothing does
    units = pd.Series(None, index=patches.index, dtype="str")
    if group_by == "slide":
        units = slides
    elif group_by == "stain":
        clusters = _most_common_within(stain_clusters(patches, seed=seed), look_alikes).dropna()
        named = clusters.map(lambda number: f"stain:{number:03d}")
        units = named.astype("str").reindex(patches.index)
    component = connected_components([units, look_alikes])
    units_of_component = units.groupby(component).nunique()
    unplaced = units.isna().to_numpy(dtype=bool) & (group_by != "patch")
    return Grouping(
        group_by=group_by,
        names=_component_names(component, patches["id"], units),
        near=near,
        train_only=np.isin(component, component[unplaced]),
        slide_disjoint=group_by == "slide" and bool(slide_known.all()) and len(patches) > 0,
        n_slides=int(slides.nunique()),
        n_slides_joined=int(units_of_component[units_of_component > 1].sum()),
        n_without_slide=int((~slide_known).sum()),
        n_without_stain=int(unplaced.sum()) if group_by == "stain" else 0,
        n_duplicates=int(sha256.duplicated(keep=False).sum()),
        n_near_duplicates=int(near.notna().sum()),
    )


def _most_common_within(clusters: pd.Series, look_alikes: pd.Series) -> pd.Series:
    """Each patch in the cluster of most of its look-alikes, the first of equally many.

    A cluster is only a stand-in: a patch may change it, where two slides would have to be joined.
    """
    of_several = look_alikes.duplicated(keep=False) & clusters.notna()
    commonest = (
        clusters[of_several].groupby(look_alikes[of_several]).agg(lambda found: found.mode()[0])
    )
    moved = look_alikes[of_several].map(commonest).astype(clusters.dtype)
    return moved.reindex(clusters.index).fillna(clusters)


def _component_names(
    component: NDArray[np.int64], ids: pd.Series, units: pd.Series
) -> NDArray[np.str_]:
    """(n,) the first unit of each patch's component in alphabetical order, else its first id."""

    def first_of(values: pd.Series) -> pd.Series:
        by_value = pd.DataFrame({"value": values, "component": component[values.index]})
        first = by_value.sort_values("value").drop_duplicates("component")
        return first.set_index("component")["value"].astype(object)

    first_id = first_of(ids)
    names = first_of(units.dropna()).reindex(first_id.index)
    named = names.where(names.notna(), SINGLE + first_id)
    return np.asarray(named.loc[component.tolist()], dtype=np.str_)


def connected_components(keys: Sequence[pd.Series]) -> NDArray[np.int64]:
    """Number, for each of n rows, the component it is in; rows with an equal key are connected.

    Each series of ``keys`` is (n,); a null key connects nothing, and equal values in two different
    series are not the same key.
    """
    n = len(keys[0])
    pairs, n_nodes = [], n
    for key in keys:  # each value of each key becomes a node that its rows are joined to
        codes, values = pd.factorize(key)
        has_key = np.flatnonzero(codes >= 0)
        pairs.append(np.stack([has_key, codes[has_key] + n_nodes], axis=1))
        n_nodes += len(values)
    return _components_of_pairs(np.concatenate(pairs), n_nodes)[:n]


def _components_of_pairs(pairs: NDArray[np.int64], n: int) -> NDArray[np.int64]:
    """Number, (n,), of the component of each of n nodes, joined by ``pairs`` (m, 2) of them."""
    ones = np.ones(len(pairs), dtype=np.int8)
    edges = coo_array((ones, (pairs[:, 0], pairs[:, 1])), shape=(n, n))
    _, component = components_of(edges, directed=False)
    return np.asarray(component, dtype=np.int64)


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
    colours = colour_moments(known)
    apart = np.abs(colours[pairs[:, 0]] - colours[pairs[:, 1]])
    pairs = pairs[(apart <= MAX_DENSITY_APART).all(axis=1)]
    component = _components_of_pairs(pairs, len(known))
    keys = pd.Series(component, index=known.index, dtype="Int64")
    in_a_set = np.bincount(component, minlength=1)[component] > 1
    return keys.where(in_a_set).reindex(patches.index)


def colour_moments(patches: pd.DataFrame) -> NDArray[np.float64]:
    """(n, 6) mean and standard deviation of the optical density of each channel."""
    means = patches[list(MEAN_COLUMNS)].to_numpy(dtype=np.float64)
    variances = patches[list(VARIANCE_COLUMNS)].to_numpy(dtype=np.float64)
    return np.concatenate([means, np.sqrt(np.maximum(variances, 0))], axis=1)


def near_duplicate_pairs(hashes: NDArray[np.uint64], *, max_distance: int) -> NDArray[np.int64]:
    """Pairs i < j, (m, 2), of the (n,) hashes within ``max_distance`` bits, that join all such.

    The distance is the smallest over the 8 orientations of one of the two. Of many equal hashes
    each is paired with the first only, or k copies of one patch would make k² pairs.
    """
    values, first, which = np.unique(hashes, return_index=True, return_inverse=True)
    turned = orientations(values)
    found = [np.stack([first[which], np.arange(len(hashes))], axis=1)]
    n_bands = max_distance + 1
    for k in range(n_bands):
        # bits 1 to 63 are dealt out among the bands, every n-th to one: neighbouring frequencies go
        # together in tissue, and spread bands differ more between patches
        mask = np.uint64(sum(1 << bit for bit in range(1, 64) if bit % n_bands == k))
        for left, right in _sharing_a_band(values, turned, mask):
            distance = np.bitwise_count(values[left, None] ^ turned[right]).min(axis=1)
            near = distance <= max_distance
            found.append(np.stack([first[left[near]], first[right[near]]], axis=1))
    pairs = np.sort(np.concatenate(found), axis=1)
    return np.unique(pairs[pairs[:, 0] != pairs[:, 1]], axis=0).astype(np.int64)


def _sharing_a_band(
    hashes: NDArray[np.uint64], turned: NDArray[np.uint64], mask: np.uint64
) -> Iterator[NDArray[np.int64]]:
    """Candidates (2, k), left < right, in pieces: hash and a turned hash agree in the band.

    ``hashes`` (n,), ``turned`` (n, 8).
    """
    n, n_turned = turned.shape
    bands, band = np.unique(hashes & mask, return_inverse=True)
    members = np.sort(band * n + np.arange(n))  # by band, then by index
    wanted = (turned & mask).ravel()  # (8n,) the band that each turned hash looks for
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
        # each turned hash of this piece as often as it has candidates, and which of them it is
        of = np.repeat(np.arange(start, stop), count[part])
        offset = np.arange(len(of)) - np.repeat(ends[part] - count[part] - done, count[part])
        yield np.stack([members[first[of] + offset] % n, right[of]])
        start = stop


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
    ordered = patches.sort_values("id")
    stained = ordered[~ordered["flags"].str.contains("blank_", regex=False)]
    if stained.empty:
        return pd.Series(pd.NA, index=patches.index, dtype="Int64")
    normals = stain_plane_normals(stained[list(COVARIANCE_COLUMNS)].to_numpy(dtype=np.float64))
    drawn = np.sort(np.random.default_rng(seed).permutation(len(normals))[:_FIT_PATCHES])
    # centred and scaled by median and quartiles; outliers pulled in
    low, median, high = np.percentile(normals[drawn], [25, 50, 75], axis=0)
    signatures = np.clip((normals - median) / np.maximum(high - low, 1e-6), -3.0, 3.0)
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


def stain_names(patches: pd.DataFrame, *, seed: int) -> pd.Series:
    """Name of each patch's stain, ``A #c9a2c4`` and so on from the palest, null for blank patches.

    Clusters as in :func:`stain_clusters`, fewer and so coarser than the groups of a split, each
    named by its mean colour; labels aren't looked at.
    """
    numbers = stain_clusters(patches, seed=seed, n_clusters=N_STAINS)
    means = patches[list(MEAN_COLUMNS)].groupby(numbers).mean()
    palest_first = means.loc[means.sum(axis=1).sort_values().index]
    names = {}
    for place, (number, density) in enumerate(palest_first.iterrows()):
        colour = np.clip(np.round(256 * 10.0 ** -density.to_numpy(float) - 1), 0, 255).astype(int)
        names[number] = "{} #{:02x}{:02x}{:02x}".format(chr(ord("A") + place), *colour)
    return numbers.map(names).astype("str")
