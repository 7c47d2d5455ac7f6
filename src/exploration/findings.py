"""What ``explore`` looks at, what passes over the pixels find, and the numbers it reports."""

from __future__ import annotations

from dataclasses import dataclass
from logging import Logger
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from src import paths
from src.data.dataset import read_split, real_groups
from src.data.groups import near_duplicate_sets
from src.data.measurements import MEAN_COLUMNS, VARIANCE_COLUMNS, stain_densities
from src.data.patches import has_flag, open_pixels, read_patches
from src.exploration import statistics
from src.exploration.statistics import Moments, PixelSurvey
from src.patch import SPLITS
from src.system.durable import read_json, verify_file
from src.system.errors import ProjectError
from src.system.progress import progress

# under this share of the median sharpness a patch counts as blurred or empty
BLURRED_SHARE_OF_MEDIAN = 0.02
# above it groups count as unbalanced: Stuart 2010, Statistical Science 25:1
LARGE_SHIFT = 0.25
PERCENTILES = (5, 25, 50, 75, 95)
FEATURES = {
    "haematoxylin": "haematoxylin, mean optical density",
    "eosin": "eosin, mean optical density",
    "structure": "structure, spread of density",
}


class ExploreError(ProjectError):
    """The packed pixels and the tables of patches and splits don't belong together."""


@dataclass(frozen=True)
class Packed:
    """The packed patches; row i of a table is patch i of its pixels.

    Attributes
    ----------
    train, test : tables of patches (``src.data.patches``)
    labels : (n,) 0 normal, 1 tumour, of train
    pixels : subset → (n, 96, 96, 3) uint8, memory-mapped
    splits : (n,) str, of train
    groups : (n,) str, of train; null where a patch's slide or stain cluster is unknown
    split_report : ``split.json``
    """

    train: pd.DataFrame
    test: pd.DataFrame
    labels: NDArray[np.uint8]
    pixels: dict[str, NDArray[np.uint8]]
    splits: pd.Series
    groups: pd.Series
    split_report: dict[str, Any]


@dataclass(frozen=True)
class Findings:
    """What the passes over the pixels found.

    Attributes
    ----------
    survey : of train
    stains : (n, 2) mean optical density of haematoxylin and eosin of each train patch
    tissue : (k,) int64, positions of the train patches without a blank flag
    blurred : (n,) bool, train patches without a blank flag that are blurred or nearly empty
    train_channels, test_channels : means and deviations; None without test patches
    duplicates : sets of identical patches, in train and test together
    near_duplicates : sets of nearly identical patches that aren't all identical
    comparison : of train, val and holdout (:func:`compare_splits`)
    """

    survey: PixelSurvey
    stains: NDArray[np.float64]
    tissue: NDArray[np.int64]
    blurred: NDArray[np.bool_]
    train_channels: Moments
    test_channels: Moments | None
    duplicates: list[pd.DataFrame]
    near_duplicates: list[pd.DataFrame]
    comparison: dict[str, Any]


def open_packed(ingest: Path = paths.INGEST, split: Path = paths.SPLIT_DIR) -> Packed:
    """Open the packed store and the splits; each table's rows in the order of its pixels.

    Raises
    ------
    ExploreError
        The pixels and the table don't have the same patches, or a class is missing.
    """
    patches = read_patches(ingest)
    # quarantined test patches have no pixels, and row -1
    patches = patches[patches["row"] >= 0].sort_values("row")
    tables, pixels = {}, {}
    for subset in ("train", "test"):
        tables[subset] = patches[patches["subset"] == subset].reset_index(drop=True)
        pixels[subset] = open_pixels(subset, ingest)
        if tables[subset]["row"].tolist() != list(range(len(pixels[subset]))):
            raise ExploreError(
                f"{subset}.npy holds {len(pixels[subset]):,} patches, patches.parquet names "
                f"{len(tables[subset]):,} rows of it; run: dvc repro --force ingest"
            )
    labels = tables["train"]["label"].to_numpy(dtype="uint8")
    if set(labels.tolist()) != {0, 1}:
        raise ExploreError("need both classes among the labelled patches; use another archive")
    placed = tables["train"][["id"]].merge(
        read_split(split / paths.SPLIT.name), on="id", how="left", validate="one_to_one"
    )
    if placed["split"].isna().any():
        raise ExploreError(
            f"{int(placed['split'].isna().sum()):,} labelled patches have no split; "
            "run: dvc repro split"
        )
    verify_file(split / paths.SPLIT_REPORT.name)
    split_report = read_json(split / paths.SPLIT_REPORT.name)
    return Packed(
        train=tables["train"],
        test=tables["test"],
        labels=labels,
        pixels=pixels,
        splits=placed["split"],
        groups=real_groups(placed["group"], split_report["group_by"]),
        split_report=split_report,
    )


def survey_packed(packed: Packed, log: Logger) -> Findings:
    """Pass once over all pixels."""
    n = len(packed.train) + len(packed.test)
    with progress("surveyed", n, "patches", log) as advance:
        survey = statistics.survey_pixels(packed.pixels["train"], packed.labels, advance=advance)
        test = statistics.survey_channels(packed.pixels["test"], advance=advance)
    blank = has_flag(packed.train["flags"], "blank_")
    tissue = np.flatnonzero(~blank)
    stains = stain_densities(packed.train[list(MEAN_COLUMNS)].to_numpy(dtype=np.float64))
    variances = packed.train[list(VARIANCE_COLUMNS)].to_numpy(dtype=np.float64)
    structure = np.sqrt(np.maximum(variances, 0).mean(axis=1))
    features = pd.DataFrame(
        np.column_stack([stains, structure]), columns=list(FEATURES), index=packed.train.index
    )
    everything = pd.concat([packed.train, packed.test], ignore_index=True)
    near = near_duplicate_sets(everything)
    unlike = everything[near.notna()].sort_values("id").drop_duplicates("sha256")
    return Findings(
        survey=survey,
        stains=stains,
        tissue=tissue,
        blurred=(survey.sharpness < BLURRED_SHARE_OF_MEDIAN * np.median(survey.sharpness)) & ~blank,
        train_channels=statistics.channel_moments(survey.histogram.sum(axis=0)),
        test_channels=statistics.channel_moments(test) if test.any() else None,
        duplicates=_sets(everything, everything["sha256"]),
        near_duplicates=_sets(unlike, near.loc[unlike.index]),
        comparison=compare_splits(
            features.iloc[tissue],
            packed.splits.iloc[tissue],
            packed.labels[tissue],
            packed.groups.iloc[tissue],
        ),
    )


def _sets(patches: pd.DataFrame, key: pd.Series) -> list[pd.DataFrame]:
    """Sets of two or more rows with an equal ``key``, each and all in order of id."""
    repeated = patches[key.duplicated(keep=False) & key.notna()].sort_values("id")
    return [rows for _, rows in repeated.groupby(key.loc[repeated.index], sort=False)]


def compare_splits(
    features: pd.DataFrame, splits: pd.Series, labels: NDArray[np.uint8], groups: pd.Series
) -> dict[str, Any]:
    """Counts, tumour fraction and feature percentiles of each split, and the largest shift.

    A shift is the difference of a split's mean from train's, in standard deviations over all
    patches (standardised mean difference). All arguments are of the same n patches.
    """
    described, shifts = {}, []
    for split in SPLITS:
        inside = (splits == split).to_numpy(dtype=bool)
        described[split] = {
            "n_patches": int(inside.sum()),
            "n_groups": int(groups[inside].nunique()),
            "tumour_fraction": round(float(labels[inside].mean()), 6),
            "percentiles": {
                name: [
                    round(float(v), 5) for v in np.percentile(features[name][inside], PERCENTILES)
                ]
                for name in features.columns
            },
        }
        for name in features.columns:
            spread = float(features[name].std(ddof=0))
            apart = features[name][inside].mean() - features[name][splits == SPLITS[0]].mean()
            shifts.append((float(apart / spread) if spread else 0.0, name, split))
    shift, name, split = max(shifts[len(features.columns) :], key=lambda found: abs(found[0]))
    return {
        "splits": described,
        "largest_shift": {
            "split": split,
            "feature": name,
            "standardised": round(shift, 4),
            "large": abs(shift) > LARGE_SHIFT,
        },
    }


def report_findings(packed: Packed, findings: Findings) -> dict[str, Any]:
    """The numbers of ``explore.json``: counts, flags, channel, stain and sharpness statistics."""
    survey = findings.survey
    passed = statistics.within_reference(findings.train_channels)
    labels, slides = packed.labels[findings.tissue], packed.train["slide"].iloc[findings.tissue]
    known = slides.notna().to_numpy(dtype=bool)
    stain = {}
    for position, name in enumerate(("haematoxylin", "eosin")):
        density = findings.stains[findings.tissue, position]
        by_slide = statistics.share_explained(density[known], slides[known])
        stain[name] = {
            **statistics.percentiles(density),
            "auroc": statistics.ranked_above(density, labels),
            "share_explained_by_slide": by_slide if known.any() else None,
        }
    return {
        "n_train": len(packed.train),
        "n_normal": int(survey.n_patches[0]),
        "n_tumour": int(survey.n_patches[1]),
        "tumour_fraction": float(packed.labels.mean()),
        "n_test": len(packed.test),
        "n_slides": int(packed.train["slide"].nunique()),
        "n_train_without_slide": int(packed.train["slide"].isna().sum()),
        "flags": {
            subset: {
                flag.rstrip("_:"): int(has_flag(table["flags"], flag).sum())
                for flag in ("blank_white", "blank_black", "duplicate_of:")
            }
            for subset, table in (("train", packed.train), ("test", packed.test))
        },
        "duplicates": count_sets(findings.duplicates),
        "near_duplicates": count_sets(findings.near_duplicates),
        "split_comparison": findings.comparison,
        "channels": {
            "order": list(statistics.CHANNELS),
            "train": _as_json(findings.train_channels),
            "test": _as_json(findings.test_channels),
            "reference": {
                "mean": list(statistics.REFERENCE_MEAN),
                "std": list(statistics.REFERENCE_STD),
                "tolerance": statistics.REFERENCE_TOLERANCE,
            },
            "train_like_reference": dict(zip(statistics.CHANNELS, passed, strict=True)),
        },
        "stain": stain,
        "sharpness": {
            "n_blurred": int(findings.blurred.sum()),
            "blurred_below_share_of_median": BLURRED_SHARE_OF_MEDIAN,
            **statistics.percentiles(survey.sharpness),
        },
        "brightness": statistics.percentiles(survey.brightness),
    }


def count_sets(sets: list[pd.DataFrame]) -> dict[str, int]:
    """Sets, sets with both labels, and sets with patches in train and in test."""
    return {
        "n_sets": len(sets),
        "n_conflicts": sum(len(rows["label"].dropna().unique()) > 1 for rows in sets),
        "n_across": sum(len(rows["subset"].unique()) > 1 for rows in sets),
    }


def _as_json(moments: Moments | None) -> dict[str, list[float]] | None:
    if moments is None:
        return None
    mean, std = moments
    return {
        "mean": [round(value, 6) for value in mean.tolist()],
        "std": [round(value, 6) for value in std.tolist()],
    }
