"""Tiny archives in Kaggle's layout, built by hand, to be broken one rule at a time."""

import io
import logging
import struct
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from src.data.patches import ingest_archive
from src.params import IngestParams

Files = dict[str, bytes]
LOG = logging.getLogger("test.ingest")


def patch_id(n: int) -> str:
    return f"{n:040x}"


def pixels_of(n: int) -> np.ndarray:
    """(96, 96, 3) uint8 noise, the same for the same n."""
    return np.random.default_rng(n).integers(0, 256, (96, 96, 3), dtype=np.uint8)


def tiff(
    pixels: np.ndarray | None = None,
    *,
    width: int = 96,
    height: int = 96,
    first_directory: int = 8,
    next_directory: int = 0,
    strip_offset: int | None = None,
    compression: int = 1,
) -> bytes:
    """An 8-bit RGB TIFF laid out by hand: header, one directory, 3 × 2 bytes, one strip."""
    data = b"" if pixels is None else pixels.tobytes()
    n_entries = 9
    extra_at = 8 + 2 + 12 * n_entries + 4
    strip_at = extra_at + 6
    long, short = 4, 3
    entries = [
        (256, long, 1, width),
        (257, long, 1, height),
        (258, short, 3, extra_at),
        (259, short, 1, compression),
        (262, short, 1, 2),
        (273, long, 1, strip_at if strip_offset is None else strip_offset),
        (277, short, 1, 3),
        (278, long, 1, height),
        (279, long, 1, len(data)),
    ]
    directory = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return (
        struct.pack("<4sI", b"II*\0", first_directory)
        + struct.pack("<H", n_entries)
        + directory
        + struct.pack("<I", next_directory)
        + struct.pack("<3H", 8, 8, 8)
        + data
    )


def saved(image: Image.Image, format: str = "TIFF", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=format, **options)
    return buffer.getvalue()


def tiny_files(n_train: int = 6, n_test: int = 3) -> Files:
    """A sound archive: train ids 1 … n_train with labels 1, 0, 1, …, test ids from 101 on."""
    train = range(1, n_train + 1)
    test = range(101, 101 + n_test)
    files = {f"train/{patch_id(n)}.tif": tiff(pixels_of(n)) for n in train}
    files |= {f"test/{patch_id(n)}.tif": tiff(pixels_of(n)) for n in test}
    files["train_labels.csv"] = table("id,label", ((patch_id(n), n % 2) for n in train))
    # not sorted: the submission's order is its own
    files["sample_submission.csv"] = table("id,label", ((patch_id(n), 0) for n in reversed(test)))
    return files


def table(header: str, rows: Iterable[tuple[object, object]]) -> bytes:
    return "".join(f"{line}\n" for line in (header, *(f"{a},{b}" for a, b in rows))).encode()


def write_zip(
    path: Path,
    files: Mapping[str, bytes] | Iterable[tuple[str | zipfile.ZipInfo, bytes]],
    method: int = zipfile.ZIP_DEFLATED,
) -> Path:
    pairs = files.items() if isinstance(files, Mapping) else files
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w", method) as archive:
        warnings.simplefilter("ignore")  # doubled names are meant
        for name, data in pairs:
            archive.writestr(name, data)
    return path


def write_folder(path: Path, files: Mapping[str, bytes]) -> Path:
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def write_archive(kind: str, folder: Path, files: Mapping[str, bytes]) -> Path:
    """``files`` as ``folder/archive.zip`` or ``folder/archive``."""
    if kind == "zip":
        return write_zip(folder / "archive.zip", files)
    return write_folder(folder / "archive", files)


def ingest(
    archive: Path,
    folder: Path,
    *,
    max_bad: int = 0,
    workers: int = 1,
    slides: Path | None = None,
    **params: object,
) -> dict[str, Any]:
    """``ingest_archive`` of files anywhere, where params.yaml allows what DVC watches."""
    section = IngestParams(archive=str(archive), max_bad=max_bad, **params)
    section = section.model_copy(update={"slides": slides and str(slides)})
    return ingest_archive(section, folder, workers=workers, log=LOG)
