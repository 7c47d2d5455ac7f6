"""Stage ``explore``: pictures and statistics of the packed patches, before any training.

Reads ``data/ingest`` and ``data/split``; writes ``reports/explore`` and one MLflow run. What it
finds is information: a fail beside the reference, a duplicate or a blank patch never stops it.
"""

from dataclasses import dataclass
from logging import Logger
from pathlib import Path
from typing import TYPE_CHECKING, Any

from src import paths
from src.params import ExploreParams, load_params
from src.system.cli import run
from src.system.errors import ProjectError
from src.system.log import configure, get_logger

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from src.data.exploration import ChannelStatistics, PixelSurvey

REPORT = "explore.json"

_GALLERY_PATCHES = 16
_SCATTER_PATCHES = 4_000
_DUPLICATE_SETS_SHOWN = 12


class ExploreError(ProjectError):
    """The packed pixels and the table of patches don't belong together."""


@dataclass(frozen=True)
class Packed:
    """The packed patches; row i of a table is patch i of its pixels.

    Attributes
    ----------
    train, test : tables of patches with columns id, label, slide, sha256, flags
    labels : (n,) 0 normal, 1 tumour, of train
    train_pixels, test_pixels : (n, 96, 96, 3) uint8, memory-mapped
    splits, groups : (n,) str, of train
    split_report : ``split.json``
    """

    train: "pd.DataFrame"
    test: "pd.DataFrame"
    labels: "NDArray[np.uint8]"
    train_pixels: "NDArray[np.uint8]"
    test_pixels: "NDArray[np.uint8]"
    splits: "pd.Series"
    groups: "pd.Series"
    split_report: dict[str, Any]


@dataclass(frozen=True)
class Findings:
    """What the passes over the pixels found.

    Attributes
    ----------
    survey : of train
    stains : (n, 2) mean optical density of haematoxylin and eosin of each train patch
    tissue : (k,) int64, positions of the train patches without a blank flag
    test_channels : None without test patches
    duplicates : sets of identical patches, in train and test together
    near_duplicates : sets of nearly identical patches that aren't all identical
    comparison : of train, val and holdout (``src.data.split_comparison``)
    """

    survey: "PixelSurvey"
    stains: "NDArray[np.float64]"
    tissue: "NDArray[np.int64]"
    train_channels: "ChannelStatistics"
    test_channels: "ChannelStatistics | None"
    duplicates: "list[pd.DataFrame]"
    near_duplicates: "list[pd.DataFrame]"
    comparison: dict[str, Any]


def main() -> None:
    """Draw the packed patches and their statistics into reports/explore (params: explore).

    The pictures also go to MLflow, as one run beside the training runs.
    """
    from src.tracking.exploration_run import exploration_run

    params = load_params()
    configure(params.runtime.verbosity)
    with exploration_run(_data_tags()) as run_:
        report = explore(
            params.explore,
            ingest=paths.INGEST,
            split=paths.SPLIT_DIR,
            destination=paths.EXPLORE,
            log=get_logger("explore"),
        )
        run_.log_result(report, paths.EXPLORE)


def explore(
    params: ExploreParams, *, ingest: Path, split: Path, destination: Path, log: Logger
) -> dict[str, Any]:
    """Write the pictures and ``explore.json`` to ``destination``; return the latter.

    Raises
    ------
    ExploreError
        The pixels and the tables of ``ingest`` and ``split`` don't have the same patches.
    """
    from src.system.durable import replacing_folder, write_json

    packed = open_packed(ingest, split)
    findings = survey_packed(packed, log)
    pictures = draw_pictures(packed, findings, params)
    report = {
        **report_findings(packed, findings),
        "seed": params.seed,
        "pictures": sorted(pictures),
    }
    with replacing_folder(destination) as folder:
        for name, figure in pictures.items():
            # without matplotlib's version in it, the file is a function of the data alone
            figure.savefig(folder / name, metadata={"Software": None})
        write_json(folder / REPORT, report)
    _log_report(report, destination, log)
    return report


def draw_pictures(packed: Packed, findings: Findings, params: ExploreParams) -> "dict[str, Figure]":
    """Every picture by its file name; those of slides and duplicates only where there are any."""
    import numpy as np

    from src.data import exploration_figures as figures
    from src.data.comparison_figure import split_comparison

    survey, labels = findings.survey, packed.labels
    rng = np.random.default_rng(params.seed)
    slides = packed.train["slide"] if packed.train["slide"].notna().any() else None
    pictures = {
        "labels.png": figures.label_distribution(survey.n_patches, len(packed.test)),
        "samples_normal.png": _samples(packed, 0, params.patches_per_class, rng),
        "samples_tumour.png": _samples(packed, 1, params.patches_per_class, rng),
        "channel_histograms.png": figures.channel_histograms(survey),
        "channel_reference.png": figures.channel_reference(
            findings.train_channels, findings.test_channels
        ),
        "mean_patches.png": figures.mean_patches(survey),
        "stain.png": _stain_scatter(packed, findings, rng),
        "blank.png": _blank_gallery(packed, survey),
        "blurred.png": _blur_gallery(packed, survey),
        "splits.png": split_comparison(
            findings.comparison, groups_are=packed.split_report["groups_are"]
        ),
    }
    if slides is not None:
        pictures["slides.png"] = figures.patches_per_slide(slides, labels)
    if findings.duplicates:
        pictures["duplicates.png"] = _duplicate_gallery(packed, findings.duplicates)
    if findings.near_duplicates:
        pictures["near_duplicates.png"] = _near_gallery(packed, findings.near_duplicates)
    return pictures


def open_packed(ingest: Path, split: Path) -> Packed:
    """Open the packed store and the splits; each table's rows in the order of its pixels.

    Raises
    ------
    ExploreError
        The pixels and the table don't have the same patches, or a class is missing.
    """
    from src.data.packed import open_pixels, read_patches
    from src.data.split_table import read_split
    from src.system.durable import read_json, verify_file

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
    return Packed(
        train=tables["train"],
        test=tables["test"],
        labels=labels,
        train_pixels=pixels["train"],
        test_pixels=pixels["test"],
        splits=placed["split"],
        groups=placed["group"],
        split_report=read_json(split / paths.SPLIT_REPORT.name),
    )


def survey_packed(packed: Packed, log: Logger) -> Findings:
    """Pass once over all pixels."""
    import numpy as np
    import pandas as pd

    from src.data import exploration
    from src.data.optical_density import MEAN_COLUMNS, stain_densities
    from src.data.split_comparison import report_comparison, split_features
    from src.system.progress import progress

    n = len(packed.train) + len(packed.test)
    with progress("surveyed", n, "patches", log) as advance:
        survey = exploration.survey_pixels(packed.train_pixels, packed.labels, advance=advance)
        test = exploration.survey_channels(packed.test_pixels, advance=advance)
    everything = pd.concat([packed.train, packed.test], ignore_index=True)
    tissue = np.flatnonzero(~exploration.has_flag(packed.train["flags"], "blank_"))
    densities = packed.train[list(MEAN_COLUMNS)].to_numpy(dtype=np.float64)
    return Findings(
        survey=survey,
        stains=stain_densities(densities),
        tissue=tissue,
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


def _stain_scatter(packed: Packed, findings: Findings, rng: "np.random.Generator") -> "Figure":
    import numpy as np

    from src.data.exploration_figures import stain_scatter

    tissue = findings.tissue
    units, unit = packed.train["slide"].iloc[tissue], "slide"
    if packed.split_report["group_by"] == "stain":
        units, unit = packed.groups.iloc[tissue], "stain cluster (stand-in for a slide)"
    return stain_scatter(
        findings.stains[tissue],
        packed.labels[tissue],
        units if units.notna().any() else None,
        np.sort(rng.permutation(len(tissue))[:_SCATTER_PATCHES]),
        unit=unit,
    )


def _samples(packed: Packed, label: int, n: int, rng: "np.random.Generator") -> "Figure":
    import numpy as np

    from src.data.galleries import sample_grid

    of_label = np.flatnonzero(packed.labels == label)
    drawn = np.sort(rng.permutation(of_label)[:n])
    return sample_grid(packed.train_pixels[drawn], label=label, n_of_label=len(of_label))


def _blank_gallery(packed: Packed, survey: "PixelSurvey") -> "Figure":
    import numpy as np

    from src.data.exploration import has_flag
    from src.data.flags import BLANK_BLACK, BLANK_WHITE
    from src.data.galleries import blank_gallery

    white = has_flag(packed.train["flags"], BLANK_WHITE)
    black = has_flag(packed.train["flags"], BLANK_BLACK)
    k = min(_GALLERY_PATCHES, len(white)) // 2
    whitest = np.lexsort((-survey.brightness, ~white))[:k]
    blackest = np.lexsort((survey.brightness, ~black))[:k]
    captions = [
        f"{survey.brightness[row]:.0f}{' flagged' if white[row] or black[row] else ''}"
        for row in (*whitest, *blackest)
    ]
    return blank_gallery(
        packed.train_pixels[whitest],
        packed.train_pixels[blackest],
        captions=captions,
        n_white=int(white.sum()),
        n_black=int(black.sum()),
    )


def _blur_gallery(packed: Packed, survey: "PixelSurvey") -> "Figure":
    import numpy as np

    from src.data import exploration
    from src.data.galleries import blur_gallery

    blank = exploration.has_flag(packed.train["flags"], "blank_")
    blurriest = np.lexsort((survey.sharpness, blank))[:_GALLERY_PATCHES]
    percent_of_median = 100 * survey.sharpness / max(float(np.median(survey.sharpness)), 1e-9)
    return blur_gallery(
        packed.train_pixels[blurriest],
        captions=[f"{percent_of_median[row]:.2g}" for row in blurriest],
        n_blurred=int((exploration.is_blurred(survey.sharpness) & ~blank).sum()),
        n=len(blank),
        share_of_median=exploration.BLURRED_SHARE_OF_MEDIAN,
    )


def _duplicate_gallery(packed: Packed, sets: "list[pd.DataFrame]") -> "Figure":
    import numpy as np

    from src.data.galleries import duplicate_gallery

    pixels = {"train": packed.train_pixels, "test": packed.test_pixels}
    firsts = [rows.iloc[0] for rows in sets[:_DUPLICATE_SETS_SHOWN]]
    return duplicate_gallery(
        np.stack([pixels[first["subset"]][first["row"]] for first in firsts]),
        captions=[_caption_duplicates(rows) for rows in sets[:_DUPLICATE_SETS_SHOWN]],
        **_count_duplicates(sets),
    )


def _near_gallery(packed: Packed, sets: "list[pd.DataFrame]") -> "Figure":
    import numpy as np

    from src.data.galleries import near_duplicate_gallery

    pixels = {"train": packed.train_pixels, "test": packed.test_pixels}
    shown = [row for rows in sets[:_DUPLICATE_SETS_SHOWN] for _, row in rows.iloc[:2].iterrows()]
    counts = _count_duplicates(sets)
    return near_duplicate_gallery(
        np.stack([pixels[row["subset"]][row["row"]] for row in shown]),
        captions=[_caption_patch(row) for row in shown],
        n_sets=counts["n_sets"],
        n_conflicts=counts["n_conflicts"],
    )


def _caption_patch(row: "pd.Series") -> str:
    import pandas as pd

    kind = "no label" if pd.isna(row["label"]) else ("normal", "tumour")[int(row["label"])]
    return f"{row['id'][:8]}…\n{kind}"


def _caption_duplicates(rows: "pd.DataFrame") -> str:
    labels = rows["label"].dropna().map({0: "normal", 1: "tumour"}).unique()
    kind = " and ".join(labels) if len(labels) else "no label"
    return f"{rows['id'].iloc[0][:8]}… × {len(rows)}\n{kind}"


def _count_duplicates(sets: "list[pd.DataFrame]") -> dict[str, int]:
    return {
        "n_sets": len(sets),
        "n_conflicts": sum(len(rows["label"].dropna().unique()) > 1 for rows in sets),
        "n_across": sum(len(rows["subset"].unique()) > 1 for rows in sets),
    }


def _count_flag(table: "pd.DataFrame", flag: str) -> int:
    from src.data.exploration import has_flag

    return int(has_flag(table["flags"], flag).sum())


def report_findings(packed: Packed, findings: Findings) -> dict[str, Any]:
    """The numbers of ``explore.json``: counts, flags, channel, stain and sharpness statistics."""
    from src.data import exploration

    survey = findings.survey
    passed = exploration.within_reference(findings.train_channels)
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
                flag.rstrip("_:"): _count_flag(table, flag)
                for flag in ("blank_white", "blank_black", "duplicate_of:")
            }
            for subset, table in (("train", packed.train), ("test", packed.test))
        },
        "duplicates": _count_duplicates(findings.duplicates),
        "near_duplicates": _count_duplicates(findings.near_duplicates),
        "split_comparison": findings.comparison,
        "channels": {
            "order": list(exploration.CHANNELS),
            "train": _as_json(findings.train_channels),
            "test": _as_json(findings.test_channels) if findings.test_channels else None,
            "reference": {
                "mean": list(exploration.REFERENCE_MEAN),
                "std": list(exploration.REFERENCE_STD),
                "tolerance": exploration.REFERENCE_TOLERANCE,
            },
            "train_like_reference": dict(zip(exploration.CHANNELS, passed, strict=True)),
        },
        "stain": _report_stain(packed, findings),
        "sharpness": {
            "n_blurred": int(exploration.is_blurred(survey.sharpness).sum()),
            "blurred_below_share_of_median": exploration.BLURRED_SHARE_OF_MEDIAN,
            **exploration.percentiles(survey.sharpness),
        },
        "brightness": exploration.percentiles(survey.brightness),
    }


def _report_stain(packed: Packed, findings: Findings) -> dict[str, Any]:
    from src.data import exploration

    labels = packed.labels[findings.tissue]
    slides = packed.train["slide"].iloc[findings.tissue]
    known = slides.notna().to_numpy(dtype=bool)
    report = {}
    for stain, name in enumerate(("haematoxylin", "eosin")):
        density = findings.stains[findings.tissue, stain]
        by_slide = exploration.share_explained(density[known], slides[known])
        report[name] = {
            **exploration.percentiles(density),
            "auroc": exploration.ranked_above(density, labels),
            "share_explained_by_slide": by_slide if known.any() else None,
        }
    return report


def _data_tags() -> dict[str, str]:
    from src.system.durable import read_json

    split = read_json(paths.SPLIT_REPORT)
    return {
        "content_digest": str(read_json(paths.INGEST_REPORT)["digests"]["train"]),
        "group_by": str(split["group_by"]),
        "slide_disjoint": str(split["slide_disjoint"]).lower(),
    }


def _as_json(statistics: "ChannelStatistics") -> dict[str, list[float]]:
    return {
        "mean": [round(value, 6) for value in statistics.mean.tolist()],
        "std": [round(value, 6) for value in statistics.std.tolist()],
    }


def _log_report(report: dict[str, Any], destination: Path, log: Logger) -> None:
    flags = report["flags"]["train"]
    channels = report["channels"]
    log.info(
        f"{report['n_train']:,} labelled patches, {report['tumour_fraction']:.1%} tumour; ".replace(
            "%", " %"
        )
        + f"{report['n_test']:,} test patches; {report['n_slides']:,} slides"
    )
    log.info(
        f"flagged in train: {flags['blank_white']:,} white, {flags['blank_black']:,} black, "
        f"{flags['duplicate_of']:,} duplicates"
    )
    outcome = [
        f"{name} {mean:.3f} {'pass' if channels['train_like_reference'][name] else 'fail'}"
        for name, mean in zip(channels["order"], channels["train"]["mean"], strict=True)
    ]
    log.info(f"channels beside Kaggle's training set: {', '.join(outcome)} (information only)")
    log.info(f"{len(report['pictures'])} pictures in {destination}")


if __name__ == "__main__":
    run(main)
