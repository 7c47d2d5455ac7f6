"""What a split came to: counts of each part, and whether anything crosses that mustn't.

Both are made from the rows that were written, not from what the split meant to do.
"""

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from src.data.near_duplicates import MAX_DENSITY_APART, MAX_DISTANCE, colours
from src.data.perceptual_hash import orientations
from src.data.schemas import SPLITS
from src.data.split_table import real_groups

# compared with every patch of the other splits: a few seconds among Kaggle's 220,025
MAX_PATCHES_COMPARED = 1_000
_AT_ONCE = 4


def summarise_splits(
    labelled: pd.DataFrame, split: pd.DataFrame, *, group_by: str
) -> dict[str, dict[str, Any]]:
    """Counts of patches and groups, by class, of each split.

    Groups are what ``group_by`` says; a patch of unknown slide or stain is a patch, not a group.

    Parameters
    ----------
    labelled
        Columns id, label.
    split
        Columns id, split, group.
    """
    joined = split.merge(labelled[["id", "label"]], on="id", validate="one_to_one")
    joined["group"] = real_groups(joined["group"], group_by)
    summary = {}
    for name in SPLITS:
        part = joined[joined["split"] == name]
        by_label = part.groupby("label")["group"].nunique()
        summary[name] = {
            "n_patches": len(part),
            "n_tumour": int(part["label"].sum()),
            "tumour_fraction": float(part["label"].mean()),
            "n_groups": int(part["group"].nunique()),
            "n_groups_with_normal": int(by_label.get(0, 0)),
            "n_groups_with_tumour": int(by_label.get(1, 0)),
            "min_groups_per_class": int(min(by_label.get(0, 0), by_label.get(1, 0))),
        }
    return summary


def audit_leaks(labelled: pd.DataFrame, split: pd.DataFrame, *, by_slide: bool) -> dict[str, int]:
    """Count what would be a leak; all are 0 in a sound split.

    Slides are counted only where they are the groups: elsewhere nobody promised to keep them whole.
    Near-duplicates are counted twice: of the sets that grouping found (``near``), how many lie in
    several splits; and of up to 1,000 patches outside train, how many have one in another split
    when each is simply compared with all others.

    Parameters
    ----------
    labelled
        Columns id, slide (nullable), sha256, near (set of near-duplicates, nullable), phash
        (nullable) and the moments of optical density.
    split
        Columns id, split, group.
    """
    joined = labelled.merge(split, on="id", how="outer", indicator=True)
    crossing = {
        "groups_crossing_splits": "group",
        "identical_pixels_crossing_splits": "sha256",
        "near_duplicates_crossing_splits": "near",
    } | ({"slides_crossing_splits": "slide"} if by_slide else {})
    return {name: _n_crossing(joined, key) for name, key in crossing.items()} | {
        "near_duplicates_found_by_comparing": _n_with_near_duplicate_elsewhere(joined),
        "patches_not_in_exactly_one_split": int(
            (joined["_merge"] != "both").sum()
            + joined["id"].duplicated().sum()
            + (~split["split"].isin(SPLITS)).sum()
        ),
    }


def _n_crossing(joined: pd.DataFrame, key: str) -> int:
    splits_per_key = joined.dropna(subset=[key]).groupby(key)["split"].nunique()
    return int((splits_per_key > 1).sum())


def _n_with_near_duplicate_elsewhere(joined: pd.DataFrame) -> int:
    """Of the first patches by id outside train, those with a near-duplicate in another split."""
    known = joined[joined["phash"].notna() & joined["split"].notna()].sort_values("id")
    hashes = known["phash"].to_numpy(dtype=np.uint64)
    splits = known["split"].to_numpy(dtype=np.str_)
    colour = colours(known)
    compared = np.flatnonzero(splits != "train")[:MAX_PATCHES_COMPARED]
    n_found = 0
    for start in range(0, len(compared), _AT_ONCE):
        rows = compared[start : start + _AT_ONCE]
        near = _differing_bits(hashes[rows], hashes) <= MAX_DISTANCE
        near &= splits[rows, None] != splits[None]
        row, other = np.nonzero(near)
        alike = np.abs(colour[rows[row]] - colour[other]).max(axis=1) <= MAX_DENSITY_APART
        n_found += len(np.unique(row[alike]))
    return n_found


def _differing_bits(few: NDArray[np.uint64], many: NDArray[np.uint64]) -> NDArray[np.uint8]:
    """(k, n): bits in which each of ``few`` (k,), best turned, differs from each of ``many``."""
    turned = orientations(few)
    fewest: NDArray[np.uint8] = np.bitwise_count(turned[:, 0, None] ^ many)
    for orientation in range(1, turned.shape[1]):
        np.minimum(fewest, np.bitwise_count(turned[:, orientation, None] ^ many), out=fewest)
    return fewest
