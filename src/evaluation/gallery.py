"""``reports/gallery``: holdout patches to look at, and where the evidence for each call lay.

``gallery.json``, a picture of each chosen patch next to its map of evidence, and small pictures for
the slider of the report.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from src.data.dataset import LabelledPatches
from src.system.durable import replacing_folder, write_json

SETS = {
    "missed": "Missed tumour, most confident first",
    "false_alarm": "False alarms, most confident first",
    "near": "Nearest to the threshold",
    "loss": "Highest loss: mistakes, or labels to doubt",
    "right_tumour": "Tumour found, most confident first",
    "right_normal": "Normal cleared, most confident first",
}
_PER_SET = 8
_N_SAMPLED = 200  # random patches for the mean share of evidence in the centre
_N_THUMBNAILS = 600
_THUMBNAIL_PX = 64
_SHOWN_PX = 192  # a patch of 96 px, enlarged twice
_CENTRE = (1 / 3, 2 / 3)  # of the side: the 32 px that the label is about
_MAP_OPACITY = 0.6


Explain = Callable[[NDArray[np.uint8], NDArray[np.bool_]], Any]
"""Patches (n, 96, 96, 3), and whether each is called tumour → ``src.model.gradcam.Explanation``."""


def write_gallery(
    folder: Path,
    rows: pd.DataFrame,
    holdout: LabelledPatches,
    *,
    explain: Explain,
    threshold: float,
    seed: int,
) -> int:
    """Write ``folder`` for the holdout ``rows`` of ``predictions.parquet``.

    With ``evaluate.tta`` the view explained is the patch as it is, one of those whose mean decided.
    Returns how many patches are shown.
    """

    def pixels_of(some: pd.DataFrame) -> NDArray[np.uint8]:
        places = np.searchsorted(holdout.ids, some["id"].to_numpy(dtype=np.str_))
        return holdout.take(places)

    def explained(some: pd.DataFrame) -> Any:
        return explain(pixels_of(some), (some["probability"] >= threshold).to_numpy())

    chosen = choose_patches(rows, threshold=threshold, per_set=_PER_SET)
    shown = rows[rows["id"].isin(chosen["id"])]
    of_shown = explained(shown)
    # those that are shown are extremes: the mean share of the centre is over random ones
    sampled = explained(
        rows.sort_values("id").sample(min(_N_SAMPLED, len(rows)), random_state=seed)
    )
    is_known = ~np.isnan(sampled.centre_share)
    share = pd.Series(of_shown.centre_share, shown["id"]).reindex(chosen["id"]).to_numpy()
    patches = chosen[["set", "rank", "id", "label", "probability", "group"]].assign(
        # NaN isn't JSON
        centre_share=np.where(np.isnan(share), None, share)  # type: ignore[call-overload]
    )
    content = {
        "patches": patches.to_dict("records"),
        "centre_share": {
            "mean": float(sampled.centre_share[is_known].mean()) if is_known.any() else None,
            "area": sampled.centre_area,
            "n": int(is_known.sum()),
            "n_without_evidence": int((~is_known).sum()),
        },
        "cells": list(of_shown.maps.shape[1:]),
        "seen_px": of_shown.seen_px,
    }
    small = _for_thumbnails(rows, threshold)
    with replacing_folder(folder) as new:
        (new / "pictures").mkdir()
        (new / "thumbnails").mkdir()
        for id_, patch, evidence in zip(
            shown["id"], pixels_of(shown), of_shown.on_patch, strict=True
        ):
            explained_picture(patch, evidence).save(new / f"pictures/{id_}.webp", quality=82)
        for id_, patch in zip(small["id"], pixels_of(small), strict=True):
            thumbnail = Image.fromarray(patch).resize((_THUMBNAIL_PX, _THUMBNAIL_PX))
            thumbnail.save(new / f"thumbnails/{id_}.webp", quality=70)
        write_json(new / "gallery.json", content)
    return len(shown)


def choose_patches(rows: pd.DataFrame, *, threshold: float, per_set: int) -> pd.DataFrame:
    """Rows of the holdout table for each of ``SETS``, with columns set and rank, the worst first.

    ``rows`` has id, label, probability. A patch may be in several sets; equal probabilities are
    ordered by id.
    """
    ordered = rows.sort_values("id")
    probability, label = ordered["probability"], ordered["label"].astype(bool)
    called = probability >= threshold
    everyone = pd.Series(True, index=ordered.index)
    worst_first: dict[str, tuple[Any, Any]] = {
        "missed": (label & ~called, probability),
        "false_alarm": (~label & called, -probability),
        "near": (everyone, (probability - threshold).abs()),
        "loss": (everyone, probability.where(label, 1 - probability)),
        "right_tumour": (label & called, -probability),
        "right_normal": (~label & ~called, probability),
    }
    chosen = [
        ordered.assign(order=order)[of_set]
        .sort_values("order", kind="stable")
        .head(per_set)
        .assign(set=name, rank=lambda found: range(1, len(found) + 1))
        for name, (of_set, order) in worst_first.items()
    ]
    table: pd.DataFrame = pd.concat(chosen, ignore_index=True)
    return table.drop(columns="order")


def explained_picture(patch: NDArray[np.uint8], evidence: NDArray[np.float64]) -> Image.Image:
    """384 × 192 px: the patch, and the patch under its map of evidence; centre squares drawn.

    ``patch`` (96, 96, 3) uint8, ``evidence`` (96, 96) in 0 … 1.
    """
    plain = _enlarged(patch).astype(np.float64)
    shown = _enlarged(np.round(255 * evidence).astype(np.uint8)) / 255
    # violet to yellow, which colour-blind readers can tell apart
    colours = 255.0 * colormaps["plasma"](shown)[..., :3]
    opacity = _MAP_OPACITY * shown[..., None]
    under_map = (1 - opacity) * plain.mean(axis=2, keepdims=True) + opacity * colours
    pair = np.concatenate([plain, under_map], axis=1).round().astype(np.uint8)
    picture = Image.fromarray(pair)
    draw = ImageDraw.Draw(picture)
    low, high = (round(_SHOWN_PX * edge) for edge in _CENTRE)
    for left in (0, _SHOWN_PX):
        # black next to white can be seen on any tissue
        draw.rectangle((left + low - 1, low - 1, left + high, high), outline="black")
        draw.rectangle((left + low, low, left + high - 1, high - 1), outline="white")
    return picture


def _for_thumbnails(rows: pd.DataFrame, threshold: float) -> pd.DataFrame:
    """Half of them nearest to the threshold, the others spread over all probabilities."""
    nearest = rows.assign(gap=(rows["probability"] - threshold).abs()).sort_values(["gap", "id"])
    near, rest = nearest.head(_N_THUMBNAILS // 2), nearest.iloc[_N_THUMBNAILS // 2 :]
    places = np.linspace(0, len(rest) - 1, min(_N_THUMBNAILS // 2, len(rest))).round().astype(int)
    return pd.concat([near, rest.sort_values(["probability", "id"]).iloc[places]])


def _enlarged(values: NDArray[np.uint8]) -> NDArray[np.uint8]:
    size = (_SHOWN_PX, _SHOWN_PX)
    return np.asarray(Image.fromarray(values).resize(size, Image.Resampling.BICUBIC))
