"""What the report is made from, read from the files that the stages wrote."""

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from src import paths
from src.system.durable import read_json, sha256_file, verify_folder

if TYPE_CHECKING:
    import pandas as pd

_PICTURE_WIDTH_PX = 860


@dataclass(frozen=True)
class Sources:
    """The content of the files, as they are.

    Attributes
    ----------
    metrics : ``metrics.json``
    holdout : the holdout rows of ``predictions.parquet``, by rising probability
    groups : ``plots/groups.csv``
    gallery : ``gallery.json``
    pictures, thumbnails : patch id → picture as a data URI
    fits : ``fit.json`` of train and finetune, with ``wall_s`` of ``timing.json``
    record : what the run of finetune says of itself (``run.json``)
    run_id : of that run, when it was made
    split, ingest, explore : ``split.json``, ``report.json``, ``explore.json``
    explored : name → picture of ``explore`` as (data URI, width, height)
    digests : name → SHA-256 of files behind the report
    """

    metrics: Mapping[str, Any]
    holdout: "pd.DataFrame"
    groups: "pd.DataFrame"
    gallery: Mapping[str, Any]
    pictures: Mapping[str, str]
    thumbnails: Mapping[str, str]
    fits: tuple[Mapping[str, Any], Mapping[str, Any]]
    record: Mapping[str, Any]
    run_id: str
    split: Mapping[str, Any]
    ingest: Mapping[str, Any]
    explore: Mapping[str, Any]
    explored: Mapping[str, tuple[str, int, int]]
    digests: Mapping[str, str]


def read_sources() -> Sources:
    """Read and verify all of it.

    Raises
    ------
    ProjectError
        A file is missing, or isn't the one its manifest names.
    """
    import pandas as pd

    for folder in (paths.EVALUATE, paths.PLOTS, paths.GALLERY, paths.EXPLORE):
        verify_folder(folder)
    predictions = pd.read_parquet(paths.PREDICTIONS)
    holdout = predictions[predictions["split"] == "holdout"]
    explore = read_json(paths.EXPLORE / "explore.json")
    run = read_json(paths.FINETUNED_MODEL / "run.json")
    return Sources(
        metrics=read_json(paths.METRICS),
        holdout=holdout.sort_values(["probability", "id"]).reset_index(drop=True),
        groups=pd.read_csv(paths.PLOTS / "groups.csv"),
        gallery=read_json(paths.GALLERY / "gallery.json"),
        pictures=_data_uris(paths.GALLERY / "pictures"),
        thumbnails=_data_uris(paths.GALLERY / "thumbnails"),
        fits=(_fit(paths.HEAD_MODEL), _fit(paths.FINETUNED_MODEL)),
        record=run["record"],
        run_id=str(run["run_id"]),
        split=read_json(paths.SPLIT_REPORT),
        ingest=read_json(paths.INGEST_REPORT),
        explore=explore,
        explored={name: _downsized(paths.EXPLORE / name) for name in explore["pictures"]},
        digests={
            "split.parquet": sha256_file(paths.SPLIT),
            "predictions.parquet": sha256_file(paths.PREDICTIONS),
            "metrics.json": sha256_file(paths.METRICS),
        },
    )


def _fit(folder: Path) -> dict[str, Any]:
    wall_s = read_json(folder / "timing.json")["wall_s"]
    return {**read_json(folder / "fit.json"), "wall_s": wall_s}


def _data_uris(folder: Path) -> dict[str, str]:
    return {file.stem: _data_uri(file.read_bytes()) for file in sorted(folder.glob("*.webp"))}


def _data_uri(webp: bytes) -> str:
    return f"data:image/webp;base64,{base64.b64encode(webp).decode()}"


def _downsized(file: Path) -> tuple[str, int, int]:
    from PIL import Image

    with Image.open(file, formats=["PNG"]) as picture:
        width = min(picture.width, _PICTURE_WIDTH_PX)
        height = round(picture.height * width / picture.width)
        small = picture.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)
    buffer = BytesIO()
    small.save(buffer, "WEBP", quality=72)
    return _data_uri(buffer.getvalue()), width, height
