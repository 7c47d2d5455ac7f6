"""What a split came to: counts of each part, what a reader should know, and whether anything leaks.

All of it is made from the rows that were written, not from what the split meant to do.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from src.data.dataset import real_groups
from src.data.groups import (
    GROUPS_ARE,
    MAX_DENSITY_APART,
    MAX_DISTANCE,
    Grouping,
    colour_moments,
)
from src.data.measurements import orientations
from src.params import SplitParams
from src.patch import SPLITS

MIN_GROUPS_PER_CLASS = 5
MAX_RELATIVE_MISS = 0.3  # of a split's share; few or uneven groups can't be dealt out better
# compared with every patch of the other splits: a few seconds among Kaggle's 220,025
MAX_PATCHES_COMPARED = 1_000
_AT_ONCE = 4


def split_report(
    labelled: pd.DataFrame, written: pd.DataFrame, grouping: Grouping, params: SplitParams
) -> dict[str, Any]:
    """``split.json`` of the table ``written``; a split that leaks is a defect and raises."""
    labelled = labelled.assign(near=grouping.near)
    audit = audit_leaks(labelled, written, by_slide=grouping.group_by == "slide")
    if any(audit.values()):
        raise RuntimeError(f"the split leaks: {audit}")
    summary = summarise_splits(labelled, written, group_by=grouping.group_by)
    n = len(labelled)
    folds = params.n_folds
    wanted = {
        "val": params.val_fraction if folds is None else 1 / folds,
        "holdout": params.holdout_fraction if folds is None else 1 / folds,
    }
    wanted["train"] = round(1.0 - sum(wanted.values()), 12)
    report = {
        "seed": params.seed,
        "group_by": grouping.group_by,
        "groups_are": GROUPS_ARE[grouping.group_by],
        "slide_disjoint": grouping.slide_disjoint,
        "n_patches": n,
        "tumour_fraction": float(labelled["label"].mean()),
        "n_groups": int(real_groups(written["group"], grouping.group_by).nunique()),
        "n_slides": grouping.n_slides,
        "n_groups_joined": grouping.n_slides_joined,
        "n_patches_without_slide": grouping.n_without_slide,
        "n_patches_without_stain": grouping.n_without_stain,
        "n_patches_kept_in_train": int(grouping.train_only.sum()),
        "n_patches_with_identical_pixels": grouping.n_duplicates,
        "n_patches_with_near_duplicates": grouping.n_near_duplicates,
        "n_folds": folds,
        "fold": None if folds is None else params.fold,
        "fraction_wanted": wanted,
        "fraction_got": {name: part["n_patches"] / n for name, part in summary.items()},
        "splits": summary,
        "leak_audit": audit,
    }
    return report | {"warnings": _warnings(report)}


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
    Near-duplicates are counted twice: of the sets that grouping found (``near``), how many are in
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
    keys = {
        "groups_crossing_splits": "group",
        "identical_pixels_crossing_splits": "sha256",
        "near_duplicates_crossing_splits": "near",
    } | ({"slides_crossing_splits": "slide"} if by_slide else {})
    crossing = {}
    for name, key in keys.items():
        splits_per_key = joined.dropna(subset=[key]).groupby(key)["split"].nunique()
        crossing[name] = int((splits_per_key > 1).sum())
    return crossing | {
        "near_duplicates_found_by_comparing": _n_with_near_duplicate_elsewhere(joined),
        "patches_not_in_exactly_one_split": int(
            (joined["_merge"] != "both").sum()
            + joined["id"].duplicated().sum()
            + (~split["split"].isin(SPLITS)).sum()
        ),
    }


def _n_with_near_duplicate_elsewhere(joined: pd.DataFrame) -> int:
    """Of the first patches by id outside train, those with a near-duplicate in another split."""
    known = joined[joined["phash"].notna() & joined["split"].notna()].sort_values("id")
    hashes = known["phash"].to_numpy(dtype=np.uint64)
    splits = known["split"].to_numpy(dtype=np.str_)
    colours = colour_moments(known)
    compared = np.flatnonzero(splits != "train")[:MAX_PATCHES_COMPARED]
    n_found = 0
    for start in range(0, len(compared), _AT_ONCE):
        rows = compared[start : start + _AT_ONCE]
        # (k, n): bits in which each of k hashes, best turned, differs from each of n
        turned = orientations(hashes[rows])
        fewest = np.bitwise_count(turned[:, 0, None] ^ hashes)
        for orientation in range(1, turned.shape[1]):
            np.minimum(fewest, np.bitwise_count(turned[:, orientation, None] ^ hashes), out=fewest)
        row, other = np.nonzero((fewest <= MAX_DISTANCE) & (splits[rows, None] != splits[None]))
        alike = np.abs(colours[rows[row]] - colours[other]).max(axis=1) <= MAX_DENSITY_APART
        n_found += len(np.unique(row[alike]))
    return n_found


def _warnings(report: dict[str, Any]) -> list[str]:
    """What a reader of any figure made on this split should know."""
    warnings = []
    if report["n_groups_joined"]:
        warnings.append(
            f"{report['n_groups_joined']:,} groups share identical or nearly identical patches "
            "with another group and are kept together"
        )
    if report["group_by"] == "stain":
        warnings.append(
            "groups are stain clusters, a stand-in for slides: patches of one slide may lie in "
            "two splits, so scores may flatter (slide_disjoint: false)"
        )
    elif report["group_by"] == "patch":
        warnings.append(
            "groups are single patches: patches of one slide lie in several splits, so scores "
            "will flatter (slide_disjoint: false)"
        )
    elif report["n_patches_without_slide"]:
        warnings.append(
            f"{report['n_patches_without_slide']:,} patches of unknown slide stay in train; their "
            "slides may also be in val or holdout (slide_disjoint: false)"
        )
    if report["n_patches_without_stain"]:
        warnings.append(
            f"{report['n_patches_without_stain']:,} blank patches show no stain and stay in train"
        )
    for name, wanted in report["fraction_wanted"].items():
        got = report["fraction_got"][name]
        if abs(got - wanted) > MAX_RELATIVE_MISS * wanted:
            warnings.append(
                f"{name} holds {100 * got:.1f} % of the patches, {100 * wanted:.1f} % were wanted: "
                f"{report['n_patches_kept_in_train']:,} patches must stay in train, and groups go "
                "as a whole"
            )
    for name, part in report["splits"].items():
        if name == "train" and report["n_patches_kept_in_train"]:
            continue  # nobody knows how many slides those are of
        if part["min_groups_per_class"] < MIN_GROUPS_PER_CLASS:
            warnings.append(
                f"{name} holds one class in only {part['min_groups_per_class']:,} groups: figures "
                f"on fewer than {MIN_GROUPS_PER_CLASS} are not to be trusted"
            )
    return warnings
