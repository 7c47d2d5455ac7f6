"""What ``explore`` looks at, and what one pass over the pixels finds."""

from dataclasses import dataclass
from logging import Logger
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from src import paths
from src.data import exploration
from src.data.exploration import ChannelStatistics, PixelSurvey
from src.data.optical_density import MEAN_COLUMNS, stain_densities
from src.data.packed import open_pixels, read_patches
from src.data.split_comparison import report_comparison, split_features
from src.data.split_table import read_split, real_groups
from src.system.durable import read_json, verify_file
from src.system.errors import ProjectError
from src.system.progress import progress


class ExploreError(ProjectError):
    """The packed pixels and the tables of patches and splits don't belong together."""


@dataclass(frozen=True)
class Packed:
    """The packed patches; row i of a table is patch i of its pixels.

    Attributes
    ----------
    train, test : tables of patches with columns id, label, slide, sha256, flags
    labels : (n,) 0 normal, 1 tumour, of train
    train_pixels, test_pixels : (n, 96, 96, 3) uint8, memory-mapped
    splits : (n,) str, of train
    groups : (n,) str, of train; null where a patch's slide or stain cluster is unknown
    split_report : ``split.json``
    """

    train: pd.DataFrame
    test: pd.DataFrame
    labels: NDArray[np.uint8]
    train_pixels: NDArray[np.uint8]
    test_pixels: NDArray[np.uint8]
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
    test_channels : None without test patches
    duplicates : sets of identical patches, in train and test together
    near_duplicates : sets of nearly identical patches that aren't all identical
    comparison : of train, val and holdout (``src.data.split_comparison``)
    """

    survey: PixelSurvey
    stains: NDArray[np.float64]
    tissue: NDArray[np.int64]
    blurred: NDArray[np.bool_]
    train_channels: ChannelStatistics
    test_channels: ChannelStatistics | None
    duplicates: list[pd.DataFrame]
    near_duplicates: list[pd.DataFrame]
    comparison: dict[str, Any]


def open_packed(ingest: Path, split: Path) -> Packed:
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
        train_pixels=pixels["train"],
        test_pixels=pixels["test"],
        splits=placed["split"],
        groups=real_groups(placed["group"], split_report["group_by"]),
        split_report=split_report,
    )


def survey_packed(packed: Packed, log: Logger) -> Findings:
    """Pass once over all pixels."""
    n = len(packed.train) + len(packed.test)
    with progress("surveyed", n, "patches", log) as advance:
        survey = exploration.survey_pixels(packed.train_pixels, packed.labels, advance=advance)
        test = exploration.survey_channels(packed.test_pixels, advance=advance)
    everything = pd.concat([packed.train, packed.test], ignore_index=True)
    blank = exploration.has_flag(packed.train["flags"], "blank_")
    tissue = np.flatnonzero(~blank)
    densities = packed.train[list(MEAN_COLUMNS)].to_numpy(dtype=np.float64)
    return Findings(
        survey=survey,
        stains=stain_densities(densities),
        tissue=tissue,
        blurred=exploration.is_blurred(survey.sharpness) & ~blank,
        train_channels=exploration.channel_statistics(survey.histogram.sum(axis=0)),
        test_channels=exploration.channel_statistics(test) if test.any() else None,
        duplicates=exploration.duplicate_sets(everything),
        near_duplicates=exploration.near_duplicates(everything),
        comparison=report_comparison(
            split_features(packed.train.iloc[tissue]),
            packed.splits.iloc[tissue],
            packed.labels[tissue],
            packed.groups.iloc[tissue],
        ),
    )
