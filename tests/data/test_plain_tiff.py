"""The quick way to read a plain patch says the same as Pillow, or nothing."""

import io
import struct
import warnings
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from src.data.plain_tiff import read_plain
from tests.data.archives import pixels_of, saved, tiff

PIXELS = pixels_of(1)


def kaggle_like(order: str = "<") -> bytes:
    """As in Kaggle's archive: 15 entries, texts between the directory and the strip."""
    texts = {270: b'{"shape": [96, 96, 3]}\0', 305: b"tifffile.py\0", 306: b"2018:11:08 18:47:45\0"}
    numbers = {
        254: 0,
        256: 96,
        257: 96,
        259: 1,
        262: 2,
        277: 3,
        278: 96,
        279: 27648,
        284: 1,
        339: 1,
    }
    tags = sorted([*texts, *numbers, 258, 273])
    at = 8 + 2 + 12 * len(tags) + 4
    extra = struct.pack(order + "3H", 8, 8, 8)
    entries = b""
    for tag in tags:
        if tag in texts:
            entries += struct.pack(order + "HHII", tag, 2, len(texts[tag]), at + len(extra))
            extra += texts[tag]
        elif tag == 258:
            entries += struct.pack(order + "HHII", tag, 3, 3, at)
        elif tag == 273:
            strip_at = at + 6 + sum(map(len, texts.values()))
            entries += struct.pack(order + "HHII", tag, 4, 1, strip_at)
        elif tag in (254, 256, 257, 278, 279):
            entries += struct.pack(order + "HHII", tag, 4, 1, numbers[tag])
        else:
            entries += struct.pack(order + "HHIHH", tag, 3, 1, numbers[tag], 0)
    start = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "IH", 8, len(tags))
    return start + entries + struct.pack(order + "I", 0) + extra + PIXELS.tobytes()


def by_pillow(data: bytes) -> np.ndarray | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with Image.open(io.BytesIO(data), formats=["TIFF"]) as image:
                pixels = np.asarray(image)
                plain = image.mode == "RGB" and getattr(image, "n_frames", 1) == 1
        return pixels if plain else None
    except Exception:
        return None


def mutated(data: bytes) -> Iterator[bytes]:
    """Every single bit of everything before the strip flipped, and every cut of it."""
    n_header = len(data) - PIXELS.size
    for bit in range(8 * n_header):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        yield bytes(changed)
    for length in range(0, n_header + 300, 3):
        yield data[:length]


@pytest.mark.parametrize("data", [kaggle_like("<"), kaggle_like(">"), tiff(PIXELS)])
def test_plain_patches_are_read(data: bytes) -> None:
    """Catches a fast path that is never taken, and swapped bytes or channels."""
    np.testing.assert_array_equal(read_plain(data), PIXELS)
    np.testing.assert_array_equal(by_pillow(data), PIXELS)


@pytest.mark.parametrize("data", [kaggle_like("<"), kaggle_like(">"), tiff(PIXELS)])
def test_what_is_read_of_damaged_headers_is_what_pillow_reads(data: bytes) -> None:
    """Catches a damaged file that is taken for sound, or read differently than before."""
    n_read = 0
    for changed in mutated(data):
        plain = read_plain(changed)
        if plain is not None:
            n_read += 1
            np.testing.assert_array_equal(plain, by_pillow(changed))
    assert n_read > 0  # bits of texts and unused bytes


@pytest.mark.parametrize(
    "data",
    [
        saved(Image.fromarray(PIXELS[..., 0])),
        saved(Image.fromarray(PIXELS[:95])),
        saved(Image.fromarray(PIXELS), compression="tiff_lzw"),
        saved(Image.fromarray(PIXELS), format="PNG"),
        saved(Image.fromarray(PIXELS), big_tiff=True),
        tiff(PIXELS, next_directory=8),
        tiff(PIXELS, strip_offset=1_000),
        tiff(PIXELS)[:-1],
        b"",
    ],
    ids=["grey", "95 rows", "LZW", "PNG", "BigTIFF", "loop", "offset", "cut", "empty"],
)
def test_everything_else_is_left_to_pillow(data: bytes) -> None:
    assert read_plain(data) is None
