"""Which pictures ``explore`` draws of what it found."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from src.data import exploration
from src.data import exploration_figures as figures
from src.data.comparison_figure import split_comparison
from src.data.exploration import PixelSurvey, has_flag
from src.data.exploration_figures import stain_scatter
from src.data.exploration_report import count_duplicates
from src.data.explored import Findings, Packed
from src.data.flags import BLANK_BLACK, BLANK_WHITE
from src.data.galleries import (
    blank_gallery,
    blur_gallery,
    duplicate_gallery,
    near_duplicate_gallery,
    sample_grid,
)
from src.params import ExploreParams

_GALLERY_PATCHES = 16
_SCATTER_PATCHES = 4_000
_DUPLICATE_SETS_SHOWN = 12


def draw_pictures(packed: Packed, findings: Findings, params: ExploreParams) -> dict[str, Figure]:
    """Every picture by its file name; those of slides and duplicates only where there are any."""
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
        "blurred.png": _blur_gallery(packed, findings),
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


def _stain_scatter(packed: Packed, findings: Findings, rng: np.random.Generator) -> Figure:
    tissue = findings.tissue
    units, unit = packed.train["slide"].iloc[tissue], "slide"
    if packed.split_report["group_by"] == "stain":
        units, unit = packed.groups.iloc[tissue], "stain cluster"
    return stain_scatter(
        findings.stains[tissue],
        packed.labels[tissue],
        units if units.notna().any() else None,
        np.sort(rng.permutation(len(tissue))[:_SCATTER_PATCHES]),
        unit=unit,
    )


def _samples(packed: Packed, label: int, n: int, rng: np.random.Generator) -> Figure:
    of_label = np.flatnonzero(packed.labels == label)
    drawn = np.sort(rng.permutation(of_label)[:n])
    return sample_grid(packed.train_pixels[drawn], label=label, n_of_label=len(of_label))


def _blank_gallery(packed: Packed, survey: PixelSurvey) -> Figure:
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


def _blur_gallery(packed: Packed, findings: Findings) -> Figure:
    sharpness, tissue = findings.survey.sharpness, findings.tissue
    blurriest = tissue[np.argsort(sharpness[tissue], kind="stable")][:_GALLERY_PATCHES]
    percent_of_median = 100 * sharpness / max(float(np.median(sharpness)), 1e-9)
    return blur_gallery(
        packed.train_pixels[blurriest],
        captions=[f"{percent_of_median[row]:.2g}" for row in blurriest],
        n_blurred=int(findings.blurred.sum()),
        n=len(sharpness),
        share_of_median=exploration.BLURRED_SHARE_OF_MEDIAN,
    )


def _duplicate_gallery(packed: Packed, sets: list[pd.DataFrame]) -> Figure:
    pixels = {"train": packed.train_pixels, "test": packed.test_pixels}
    firsts = [rows.iloc[0] for rows in sets[:_DUPLICATE_SETS_SHOWN]]
    return duplicate_gallery(
        np.stack([pixels[first["subset"]][first["row"]] for first in firsts]),
        captions=[_caption_duplicates(rows) for rows in sets[:_DUPLICATE_SETS_SHOWN]],
        **count_duplicates(sets),
    )


def _near_gallery(packed: Packed, sets: list[pd.DataFrame]) -> Figure:
    pixels = {"train": packed.train_pixels, "test": packed.test_pixels}
    shown = [row for rows in sets[:_DUPLICATE_SETS_SHOWN] for _, row in rows.iloc[:2].iterrows()]
    counts = count_duplicates(sets)
    return near_duplicate_gallery(
        np.stack([pixels[row["subset"]][row["row"]] for row in shown]),
        captions=[_caption_patch(row) for row in shown],
        n_sets=counts["n_sets"],
        n_conflicts=counts["n_conflicts"],
    )


def _caption_patch(row: pd.Series) -> str:
    kind = "no label" if pd.isna(row["label"]) else ("normal", "tumour")[int(row["label"])]
    return f"{row['id'][:8]}…\n{kind}"


def _caption_duplicates(rows: pd.DataFrame) -> str:
    labels = rows["label"].dropna().map({0: "normal", 1: "tumour"}).unique()
    kind = " and ".join(labels) if len(labels) else "no label"
    return f"{rows['id'].iloc[0][:8]}… × {len(rows)}\n{kind}"
