"""An archive of Kaggle's size, made in minutes: patches cut from a few large generated canvases.

Every patch is another cut, and every slide turns and scales its canvas and has its own stain, so
hashes, stain clusters and compression see what they would see in real data. Labels are random:
nothing can be learnt here.
"""

import functools
import hashlib
import struct
import zipfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from src.drawing.patches import draw_chunk
from src.drawing.plan import plan_subset

PATCH_PX = 96
CANVAS_PATCHES = 12  # a side
N_CANVASES = 8
TUMOUR_FRACTION = 0.405
_INNER = 0.7  # of a canvas' side: what is left of it however it is turned
_LEVEL = 1  # of zlib: half the size of stored, as Kaggle's zip is

_HEADER_BYTES = 140


class Slide(NamedTuple):
    """Patches of one slide: all cut from one canvas, in one stain."""

    name: str
    folder: str
    seed: int
    n_patches: int


class Entry(NamedTuple):
    """One deflated patch, ready for the zip."""

    name: str
    deflated: bytes
    n_bytes: int
    crc32: int


def write_full_archive(path: Path, *, n_train: int, n_test: int, n_slides: int) -> None:
    """Write the zip; ``n_slides`` of the labelled patches, a quarter more for the others."""
    train = _slides("train", n_train, n_slides)
    test = _slides("test", n_test, max(1, n_slides // 4))
    labels: list[str] = []
    order: list[str] = []
    slide_of: list[str] = []
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        ProcessPoolExecutor(mp_context=get_context("spawn")) as pool,
    ):
        for slide, entries in zip(train + test, pool.map(cut_slide, train + test), strict=True):
            for entry in entries:
                _add(archive, entry)
                patch_id = Path(entry.name).stem
                if slide.folder == "train":
                    labels.append(f"{patch_id},{_label(patch_id)}\n")
                    slide_of.append(f"{patch_id},{slide.name}\n")
                else:
                    order.append(f"{patch_id},0\n")
        archive.writestr("train_labels.csv", "id,label\n" + "".join(labels))
        archive.writestr("sample_submission.csv", "id,label\n" + "".join(order))
        archive.writestr("slides.csv", "id,slide\n" + "".join(slide_of))


def cut_slide(slide: Slide) -> list[Entry]:
    """Cut, stain and deflate all patches of one slide."""
    rng = np.random.default_rng(slide.seed)
    canvas = _stained(_turned(_canvas(slide.seed % N_CANVASES), rng), rng)
    corners = rng.integers(0, canvas.shape[0] - PATCH_PX + 1, (slide.n_patches, 2))
    return list(_entries(slide, canvas, corners))


def _entries(
    slide: Slide, canvas: NDArray[np.uint8], corners: NDArray[np.int64]
) -> Iterator[Entry]:
    header = tiff_header()
    for n, (row, column) in enumerate(corners.tolist()):
        pixels = canvas[row : row + PATCH_PX, column : column + PATCH_PX]
        data = header + pixels.tobytes()
        compressor = zlib.compressobj(_LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS)
        deflated = compressor.compress(data) + compressor.flush()
        patch_id = hashlib.sha1(f"{slide.name}/{n}".encode(), usedforsecurity=False).hexdigest()
        yield Entry(f"{slide.folder}/{patch_id}.tif", deflated, len(data), zlib.crc32(data))


def _slides(folder: str, n_patches: int, n_slides: int) -> list[Slide]:
    """As uneven as real slides: the largest hold ten times the patches of the smallest."""
    weight = np.random.default_rng(0).uniform(1, 10, n_slides)
    ends = np.round(np.cumsum(weight) / weight.sum() * n_patches).astype(int)
    counts = np.diff(ends, prepend=0)
    first_seed = 0 if folder == "train" else 10_000
    return [
        Slide(f"{folder}-{i:03d}", folder, first_seed + i, int(n)) for i, n in enumerate(counts)
    ]


@functools.cache
def _canvas(seed: int) -> NDArray[np.uint8]:
    """(1152, 1152, 3) of generated tissue, patch beside patch."""
    n = CANVAS_PATCHES**2
    plan = plan_subset(seed=seed, subset="train", n_patches=n, n_slides=1)
    drawn = np.concatenate([draw_chunk(chunk).pixels for chunk in plan.chunks()])
    tiles = drawn.reshape(CANVAS_PATCHES, CANVAS_PATCHES, PATCH_PX, PATCH_PX, 3)
    side = CANVAS_PATCHES * PATCH_PX
    return np.ascontiguousarray(tiles.transpose(0, 2, 1, 3, 4).reshape(side, side, 3))


def _turned(canvas: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """The inner part, turned by any angle and scaled: no other slide's patches look the same."""
    side = round(canvas.shape[0] * rng.uniform(0.9, 1.4))
    image = Image.fromarray(canvas).resize((side, side), Image.Resampling.BILINEAR)
    turned = np.asarray(image.rotate(rng.uniform(0, 360), Image.Resampling.BILINEAR))
    margin = round(side * (1 - _INNER) / 2)
    return turned[margin : side - margin, margin : side - margin]


def _stained(canvas: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Scale each channel's optical density: another amount of stain, another scanner."""
    values = (np.arange(256) + 1) / 256
    density = rng.uniform(0.7, 1.3, 3)
    tables = np.round(values[:, None] ** density * 256 - 1).clip(0, 255).astype(np.uint8)
    return np.stack([tables[canvas[..., channel], channel] for channel in range(3)], axis=-1)


def _label(patch_id: str) -> int:
    return int(int(patch_id[:8], 16) / 2**32 < TUMOUR_FRACTION)


def tiff_header() -> bytes:
    """Header and directory of an uncompressed 96 × 96 RGB TIFF whose strip follows at once."""
    long, short = 4, 3
    entries = [
        (256, long, 1, PATCH_PX),
        (257, long, 1, PATCH_PX),
        (258, short, 3, 122),
        (259, short, 1, 1),
        (262, short, 1, 2),
        (273, long, 1, _HEADER_BYTES),
        (277, short, 1, 3),
        (278, long, 1, PATCH_PX),
        (279, long, 1, PATCH_PX * PATCH_PX * 3),
    ]
    directory = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    header = struct.pack("<4sIH", b"II*\0", 8, len(entries)) + directory + struct.pack("<I", 0)
    return (header + struct.pack("<3H", 8, 8, 8)).ljust(_HEADER_BYTES, b"\0")


def _add(archive: zipfile.ZipFile, entry: Entry) -> None:
    """What ZipFile.writestr does, but for the compressing, which another process has done."""
    info = zipfile.ZipInfo(entry.name)
    info.compress_type = zipfile.ZIP_DEFLATED
    info.CRC, info.file_size, info.compress_size = entry.crc32, entry.n_bytes, len(entry.deflated)
    assert archive.fp is not None
    info.header_offset = archive.fp.tell()
    zip64 = info.header_offset > zipfile.ZIP64_LIMIT
    archive.fp.write(info.FileHeader(zip64=zip64) + entry.deflated)
    archive.start_dir = archive.fp.tell()
    archive.filelist.append(info)
    archive.NameToInfo[entry.name] = info
