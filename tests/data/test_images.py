"""PNG and TIFF bytes to one patch: whole 8-bit RGB of 96 × 96 px, or why not."""

from __future__ import annotations

import hashlib
import io
import struct
import warnings
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from src.data.archives import BadPatchError
from src.data.images import decode_image, decode_tiff, read_plain_tiff, sha256_pixels
from tests.data.archives import pixels_of, saved, tiff

PIXELS = pixels_of(1)


def coded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    return saved(image, kind, **options)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_pixels_come_back(kind):
    """Catches BGR for RGB, and a suffix trusted more than the bytes."""
    np.testing.assert_array_equal(decode_image(coded(Image.fromarray(PIXELS), kind)), PIXELS)


SMALL = Image.fromarray(PIXELS[:95])
WRONG = {
    "size": (coded(SMALL), r"size \(96, 95\), expected \(96, 96\)"),
    "grey": (coded(Image.new("L", (96, 96))), "pixels are grey, expected RGB"),
    "alpha": (coded(Image.new("RGBA", (96, 96))), "pixels are RGB with alpha"),
    "palette": (coded(Image.new("P", (96, 96))), "pixels are palette"),
    "frames": (
        coded(Image.fromarray(PIXELS), save_all=True, append_images=[Image.new("RGB", (96, 96))]),
        "2 frames, expected 1",
    ),
    "truncated": (coded(Image.fromarray(PIXELS))[:-5000], "truncated or corrupt PNG"),
    "header only": (coded(Image.fromarray(PIXELS))[:12], "truncated or corrupt PNG"),
    "jpeg": (coded(Image.fromarray(PIXELS), "JPEG"), "format JPEG"),
    "empty": (b"", "empty image file"),
    "too many bytes": (b"\x89PNG\r\n\x1a\n" + bytes(1 << 20), "at most 1,048,576 allowed"),
}


@pytest.mark.parametrize("name", WRONG)
def test_anything_else_is_refused(name):
    """Catches pixels that Pillow would convert, or make up, without a word."""
    data, reason = WRONG[name]
    with pytest.raises(BadPatchError, match=reason):
        decode_image(data)


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (struct.pack(">IIBB", 96, 96, 16, 2), "16 bits a channel, expected 8"),
        (struct.pack(">IIBB", 40_000, 40_000, 8, 2), r"size \(40000, 40000\)"),
    ],
)
def test_claims_of_the_header_are_read_before_pillow(header, reason):
    """Catches 16 bits cut to 8, and 4.8 GB allocated for a file of 20 kB."""
    data = bytearray(coded(Image.fromarray(PIXELS)))
    data[16 : 16 + len(header)] = header
    with pytest.raises(BadPatchError, match=reason):
        decode_image(bytes(data))


def test_pixels_are_the_bytes_of_the_strip_in_order() -> None:
    """Catches swapped channels, and rows taken for columns."""
    pixels = np.zeros((96, 96, 3), np.uint8)
    pixels[2, 5] = (10, 20, 30)
    decoded = decode_tiff(tiff(pixels))
    assert decoded[2, 5].tolist() == [10, 20, 30]
    assert (decoded.shape, decoded.dtype) == ((96, 96, 3), np.uint8)
    np.testing.assert_array_equal(decoded, pixels)


@pytest.mark.parametrize("big", [False, True], ids=["classic", "BigTIFF"])
def test_both_headers_are_read(big: bool) -> None:
    data = saved(Image.fromarray(PIXELS), big_tiff=big)
    assert data[2] == (43 if big else 42)
    np.testing.assert_array_equal(decode_tiff(data), PIXELS)


@pytest.mark.parametrize("compression", ["jpeg", "tiff_lzw", "tiff_adobe_deflate", "packbits"])
def test_compressed_tiff_is_refused(compression: str) -> None:
    """Catches lossy pixels taken for the originals, and libtiff writing on stderr by itself."""
    data = saved(Image.fromarray(PIXELS), compression=compression)
    with pytest.raises(BadPatchError, match=f"compression {compression}, expected none"):
        decode_tiff(data)


def test_digest_is_of_the_pixel_bytes() -> None:
    """Catches a digest that changes with compression, or with the array's memory order."""
    expected = hashlib.sha256(PIXELS.tobytes()).hexdigest()
    assert sha256_pixels(decode_tiff(tiff(PIXELS))) == expected
    assert sha256_pixels(np.asfortranarray(PIXELS)) == expected


def test_cut_anywhere_is_refused() -> None:
    """Catches a truncated image filled up with grey."""
    data = tiff(PIXELS)
    for length in [*range(130), *range(130, len(data), 997)]:
        with pytest.raises(BadPatchError, match=r"empty image file|truncated or corrupt TIFF"):
            decode_tiff(data[:length])


def test_flipped_header_bits_decode_or_are_refused(capfd: pytest.CaptureFixture[str]) -> None:
    """Catches Pillow's own exceptions and warnings getting out where tags are nonsense."""
    data = tiff(PIXELS)
    n_refused = 0
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")  # as where pytest doesn't turn them into errors
        for bit in range(8 * 128):
            broken = bytearray(data)
            broken[bit // 8] ^= 1 << bit % 8
            try:
                decode_tiff(bytes(broken))
            except BadPatchError:
                n_refused += 1
    assert n_refused > 400
    assert warned == []
    assert capfd.readouterr().err == ""


def kaggle_like() -> bytes:
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
    extra = struct.pack("<3H", 8, 8, 8)
    entries = b""
    for tag in tags:
        if tag in texts:
            entries += struct.pack("<HHII", tag, 2, len(texts[tag]), at + len(extra))
            extra += texts[tag]
        elif tag == 258:
            entries += struct.pack("<HHII", tag, 3, 3, at)
        elif tag == 273:
            strip_at = at + 6 + sum(map(len, texts.values()))
            entries += struct.pack("<HHII", tag, 4, 1, strip_at)
        elif tag in (254, 256, 257, 278, 279):
            entries += struct.pack("<HHII", tag, 4, 1, numbers[tag])
        else:
            entries += struct.pack("<HHIHH", tag, 3, 1, numbers[tag], 0)
    start = b"II*\0" + struct.pack("<IH", 8, len(tags))
    return start + entries + struct.pack("<I", 0) + extra + PIXELS.tobytes()


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


@pytest.mark.parametrize("data", [kaggle_like(), tiff(PIXELS)])
def test_plain_patches_are_read(data: bytes) -> None:
    """Catches a fast path that is never taken, and swapped bytes or channels."""
    np.testing.assert_array_equal(read_plain_tiff(data), PIXELS)
    np.testing.assert_array_equal(by_pillow(data), PIXELS)


@pytest.mark.parametrize("data", [kaggle_like(), tiff(PIXELS)])
def test_what_is_read_of_damaged_headers_is_what_pillow_reads(data: bytes) -> None:
    """Catches a damaged file that is taken for sound, or read differently than before."""
    n_read = 0
    for changed in mutated(data):
        plain = read_plain_tiff(changed)
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
    assert read_plain_tiff(data) is None
