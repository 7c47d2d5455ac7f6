"""What ``evaluate`` adds to the figures: patches to look at, where the evidence lay, thumbnails.

Writes ``reports/gallery``: ``gallery.json``, a picture of each chosen patch beside its Grad-CAM
map, and small pictures of the patches nearest to the threshold for the slider of the report.
"""

from logging import Logger
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from src import paths
from src.system.durable import replacing_folder, write_json

if TYPE_CHECKING:
    import keras
    import pandas as pd

    from src.data.dataset import LabelledPatches

GALLERY_FILE = "gallery.json"
PICTURES, THUMBNAILS = "pictures", "thumbnails"
_PER_SET = 8
_N_SAMPLED = 200  # random patches for the mean share of evidence in the centre
_N_THUMBNAILS = 600
_THUMBNAIL_PX = 64


def write_gallery(
    model: "keras.Model", rows: "pd.DataFrame", *, threshold: float, seed: int, log: Logger
) -> None:
    """Write ``reports/gallery`` of the holdout ``rows`` of ``predictions.parquet``.

    ``model`` gives a logit for the patch as it is; with ``evaluate.tta`` that is one of the views
    whose mean decided.
    """
    from src.data.dataset import load_split
    from src.evaluation.gallery import choose_patches
    from src.model import gradcam

    holdout = load_split("holdout")
    chosen = choose_patches(rows, threshold=threshold, per_set=_PER_SET)
    shown = rows[rows["id"].isin(chosen["id"])]
    seen_px = gradcam.visible_px(model)
    maps = _maps(model, holdout, shown, threshold)
    shares = dict(zip(shown["id"], gradcam.centre_share(maps, seen_px=seen_px), strict=True))
    with replacing_folder(paths.GALLERY) as folder:
        evidence = gradcam.on_patch(maps, seen_px=seen_px)
        _write_pictures(folder / PICTURES, holdout, shown, evidence)
        _write_thumbnails(folder / THUMBNAILS, holdout, rows, threshold)
        write_json(
            folder / GALLERY_FILE,
            {
                "patches": [_entry(row, shares) for _, row in chosen.iterrows()],
                "centre_share": _mean_share(model, holdout, rows, threshold, seed),
                "cells": list(maps.shape[1:]),
                "seen_px": seen_px,
            },
        )
    log.info(f"explained {len(shown):,} holdout patches in {paths.GALLERY.relative_to(paths.ROOT)}")


def _entry(row: "pd.Series", shares: dict[str, float]) -> dict[str, Any]:
    share = float(shares[row["id"]])
    return {
        "set": row["set"],
        "rank": int(row["rank"]),
        "id": row["id"],
        "label": int(row["label"]),
        "probability": float(row["probability"]),
        "group": str(row["group"]),
        "centre_share": None if np.isnan(share) else share,
    }


def _mean_share(
    model: "keras.Model",
    holdout: "LabelledPatches",
    rows: "pd.DataFrame",
    threshold: float,
    seed: int,
) -> dict[str, Any]:
    """Mean share of evidence in the centre over random patches: the chosen ones are extreme."""
    from src.model import gradcam

    seen_px = gradcam.visible_px(model)
    sampled = rows.sort_values("id").sample(min(_N_SAMPLED, len(rows)), random_state=seed)
    shares = gradcam.centre_share(_maps(model, holdout, sampled, threshold), seen_px=seen_px)
    known = shares[~np.isnan(shares)]
    return {
        "mean": float(known.mean()) if len(known) else None,
        "area": gradcam.centre_area(seen_px),
        "n": len(known),
        "n_without_evidence": int(np.isnan(shares).sum()),
    }


def _maps(
    model: "keras.Model", holdout: "LabelledPatches", rows: "pd.DataFrame", threshold: float
) -> NDArray[np.float64]:
    """Grad-CAM for the decision on each row."""
    from src.model.gradcam import gradcam

    called_tumour = (rows["probability"] >= threshold).to_numpy()
    return gradcam(model, _pixels(holdout, rows), called_tumour)


def _pixels(holdout: "LabelledPatches", rows: "pd.DataFrame") -> NDArray[np.uint8]:
    places = np.searchsorted(holdout.ids, rows["id"].to_numpy(dtype=np.str_))
    return holdout.pixels[holdout.rows[places]]


def _write_pictures(
    folder: Path, holdout: "LabelledPatches", rows: "pd.DataFrame", evidence: NDArray[np.float64]
) -> None:
    from src.evaluation.gallery import explained_picture

    folder.mkdir()
    for id_, patch, map_ in zip(rows["id"], _pixels(holdout, rows), evidence, strict=True):
        explained_picture(patch, map_).save(folder / f"{id_}.webp", quality=82)


def _write_thumbnails(
    folder: Path, holdout: "LabelledPatches", rows: "pd.DataFrame", threshold: float
) -> None:
    """Half of them nearest to the threshold, the others spread over all probabilities."""
    from PIL import Image

    folder.mkdir()
    nearest = rows.assign(gap=(rows["probability"] - threshold).abs()).sort_values(["gap", "id"])
    near, rest = nearest.head(_N_THUMBNAILS // 2), nearest.iloc[_N_THUMBNAILS // 2 :]
    places = np.linspace(0, len(rest) - 1, min(_N_THUMBNAILS // 2, len(rest))).round().astype(int)
    spread = rest.sort_values(["probability", "id"]).iloc[places]
    for part in (near, spread):
        for id_, patch in zip(part["id"], _pixels(holdout, part), strict=True):
            small = Image.fromarray(patch).resize((_THUMBNAIL_PX, _THUMBNAIL_PX))
            small.save(folder / f"{id_}.webp", quality=70)
