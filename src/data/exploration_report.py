"""The numbers of ``explore.json``."""

from typing import Any

import pandas as pd

from src.data import exploration
from src.data.exploration import ChannelStatistics
from src.data.explored import Findings, Packed


def report_findings(packed: Packed, findings: Findings) -> dict[str, Any]:
    """The numbers of ``explore.json``: counts, flags, channel, stain and sharpness statistics."""
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
        "duplicates": count_duplicates(findings.duplicates),
        "near_duplicates": count_duplicates(findings.near_duplicates),
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
            "n_blurred": int(findings.blurred.sum()),
            "blurred_below_share_of_median": exploration.BLURRED_SHARE_OF_MEDIAN,
            **exploration.percentiles(survey.sharpness),
        },
        "brightness": exploration.percentiles(survey.brightness),
    }


def _report_stain(packed: Packed, findings: Findings) -> dict[str, Any]:
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


def count_duplicates(sets: list[pd.DataFrame]) -> dict[str, int]:
    """Sets, sets with both labels, and sets with patches in train and in test."""
    return {
        "n_sets": len(sets),
        "n_conflicts": sum(len(rows["label"].dropna().unique()) > 1 for rows in sets),
        "n_across": sum(len(rows["subset"].unique()) > 1 for rows in sets),
    }


def _count_flag(table: pd.DataFrame, flag: str) -> int:
    return int(exploration.has_flag(table["flags"], flag).sum())


def _as_json(statistics: ChannelStatistics) -> dict[str, list[float]]:
    return {
        "mean": [round(value, 6) for value in statistics.mean.tolist()],
        "std": [round(value, 6) for value in statistics.std.tolist()],
    }
