"""One patch from the bytes of a TIFF or PNG file, or the exact reason why not.

Kaggle's own way of writing a TIFF is read by :func:`read_plain_tiff`, anything else by Pillow.
TensorFlow doesn't decode TIFF, and Pillow opens far more than a patch may be (a renamed PNG,
CMYK, 16 bits, several pages, 400 megapixels in 4 kB), so everything is checked before a pixel is
decoded.
"""

from __future__ import annotations

import hashlib
import io
import logging
import struct
import warnings

import numpy as np
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin, TiffImagePlugin

from src.data.archives import MAX_IMAGE_BYTES, BadPatchError
from src.patch import N_BYTES, SHAPE, SIZE_PX

IMAGE_SUFFIXES = (".tif", ".tiff", ".png")

_MAX_PIXELS = 1_000_000  # beyond it the size isn't a mistake but a bomb
_CORRUPT_TIFF, _CORRUPT_PNG = "truncated or corrupt TIFF", "truncated or corrupt PNG"

# start of the file → struct formats of: first offset and its position, entry count, next offset
_CLASSIC, _BIG = ("I", 4, "H", 12), ("Q", 8, "Q", 20)
_TIFF_STARTS = {
    b"II*\0": ("<", *_CLASSIC),
    b"MM\0*": (">", *_CLASSIC),
    b"II+\0": ("<", *_BIG),
    b"MM\0+": (">", *_BIG),
}
_PNG_START = b"\x89PNG\r\n\x1a\n"
_OTHER_FORMATS = {
    b"\x89PNG": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"GIF8": "GIF",
    b"BM": "BMP",
    b"RIFF": "WEBP",
    b"\x89HDF": "HDF5",
    b"%PDF": "PDF",
}

_PNG_HEADER = struct.Struct(">4sIIBBBBB")  # the chunk IHDR, which comes first, after its length
_PNG_RGB = 2
_PNG_COLOURS = {0: "grey", _PNG_RGB: "RGB", 3: "palette", 4: "grey with alpha", 6: "RGB with alpha"}

# the tags of a plain TIFF (TIFF 6.0, section 8): the whole number each must hold
_ENTRY = np.dtype([("tag", "<u2"), ("kind", "<u2"), ("count", "<u4"), ("value", "<u4")])
_ASCII, _SHORT, _LONG = 2, 3, 4
_REQUIRED = {
    256: SIZE_PX,  # width
    257: SIZE_PX,  # height
    259: 1,  # no compression
    262: 2,  # RGB
    277: 3,  # samples per pixel
    279: N_BYTES,  # of the strip
}
_OPTIONAL = {254: 0, 278: SIZE_PX, 284: 1, 339: 1}  # whole image, rows, interleaved, unsigned
_TEXTS = {270, 305, 306}  # description, software, date
_BITS, _STRIP_OFFSET = 258, 273

# where nobody listens, Pillow's error records would reach stderr beside our one line
logging.getLogger("PIL").addHandler(logging.NullHandler())


def decode_image(data: bytes) -> NDArray[np.uint8]:
    """Decode one patch from TIFF or PNG; which of them, its first bytes say.

    Returns
    -------
    (96, 96, 3) uint8, RGB.

    Raises
    ------
    BadPatchError
        Anything but one whole 8-bit RGB image of 96 × 96 px, or more than 1 MiB.
    """
    if len(data) > MAX_IMAGE_BYTES:
        raise BadPatchError(f"{len(data):,} bytes, at most {MAX_IMAGE_BYTES:,} allowed")
    return decode_png(data) if data.startswith(_PNG_START) else decode_tiff(data)


def decode_tiff(data: bytes) -> NDArray[np.uint8]:
    """As :func:`decode_image`, of a TIFF, which must be uncompressed as Kaggle's are."""
    plain = read_plain_tiff(data)
    if plain is not None:
        return plain
    _check_tiff_start(data)
    _check_frames(data)
    try:
        with warnings.catch_warnings():
            # Pillow warns, and goes on, where tags are cut off or contradict each other
            warnings.simplefilter("error")
            # the plugin itself: Image.open would try other formats, and warn about bombs on stderr
            with TiffImagePlugin.TiffImageFile(io.BytesIO(data)) as image:
                _check_tiff(image)
                pixels = np.asarray(image)
    except BadPatchError:
        raise
    except Exception as error:  # whatever broken tags make of Pillow, the file is what is broken
        raise _corrupt(_CORRUPT_TIFF, error) from error
    return _checked(pixels)


def decode_png(data: bytes) -> NDArray[np.uint8]:
    """As :func:`decode_image`, of a PNG.

    Size and kind of pixel are read from its header before Pillow sees it: Pillow would silently
    make 8 bits of 16, and allocate whatever size the header claims.
    """
    try:
        name, width_px, height_px, bits, colour, *_ = _PNG_HEADER.unpack_from(
            data, len(_PNG_START) + 4
        )
    except struct.error as error:
        raise BadPatchError(f"{_CORRUPT_PNG} ({len(data)} bytes)") from error
    if name != b"IHDR":
        raise BadPatchError(f"{_CORRUPT_PNG} (begins with {name!r})")
    if (width_px, height_px) != SHAPE[:2]:
        raise BadPatchError(f"size {(width_px, height_px)}, expected {SHAPE[:2]}")
    if colour != _PNG_RGB:
        raise BadPatchError(f"pixels are {_PNG_COLOURS.get(colour, 'unknown')}, expected RGB")
    if bits != 8:
        raise BadPatchError(f"{bits} bits a channel, expected 8")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with PngImagePlugin.PngImageFile(io.BytesIO(data)) as image:
                if getattr(image, "n_frames", 1) != 1:
                    raise BadPatchError(f"{image.n_frames} frames, expected 1")
                pixels = np.asarray(image)
    except BadPatchError:
        raise
    except Exception as error:  # as for TIFF
        raise _corrupt(_CORRUPT_PNG, error) from error
    return _checked(pixels)


def raw_patch(data: bytes) -> NDArray[np.uint8]:
    """The (96, 96, 3) uint8 pixels, read-only, whose bytes ``data`` are: rows from the top, RGB."""
    if len(data) != N_BYTES:
        raise BadPatchError(f"{len(data):,} bytes of pixels, expected {N_BYTES:,}")
    return np.frombuffer(data, np.uint8).reshape(SHAPE)


def sha256_pixels(pixels: NDArray[np.uint8]) -> str:
    """SHA-256 of a patch's 27,648 pixel bytes, rows from the top, RGB, as 64 hex digits."""
    return hashlib.sha256(np.ascontiguousarray(pixels).data).hexdigest()


def read_plain_tiff(data: bytes) -> NDArray[np.uint8] | None:
    """The (96, 96, 3) pixels of a plain patch, read-only; None if the file is anything else.

    Plain is a little-endian TIFF with one directory and one uncompressed strip of 96 × 96 × 3
    bytes: Kaggle's, and the generated ones. Whatever departs from that in the least, damaged files
    included, is left to Pillow, which is an order of magnitude slower and knows what to say.
    """
    try:
        start, at = struct.unpack_from("<4sI", data)
        (n_entries,) = struct.unpack_from("<H", data, at)
        (following,) = struct.unpack_from("<I", data, at + 2 + n_entries * _ENTRY.itemsize)
        directory = np.frombuffer(data, _ENTRY, n_entries, at + 2).tolist()
    except (struct.error, ValueError):  # something is past the end
        return None
    if start != b"II*\0" or following:
        return None
    numbers: dict[int, int] = {}
    last = 0
    for tag, kind, count, value in directory:
        if tag <= last:
            return None
        last = tag
        if tag in _TEXTS:
            if kind != _ASCII or (count > 4 and value + count > len(data)):
                return None
        elif tag == _BITS:
            bits = data[value : value + 6]
            if (kind, count, bits) != (_SHORT, 3, b"\x08\0\x08\0\x08\0"):
                return None
        elif count == 1 and kind in (_SHORT, _LONG):
            numbers[tag] = value & 0xFFFF if kind == _SHORT else value
        else:
            return None
    has_bits = any(entry[0] == _BITS for entry in directory)
    strip = numbers.pop(_STRIP_OFFSET, len(data))
    if not has_bits or strip + N_BYTES > len(data) or not numbers.items() >= _REQUIRED.items():
        return None
    if any(numbers[tag] != _OPTIONAL.get(tag) for tag in numbers.keys() - _REQUIRED.keys()):
        return None
    return np.frombuffer(data, np.uint8, N_BYTES, strip).reshape(SHAPE)


def _check_tiff_start(data: bytes) -> None:
    if not data:
        raise BadPatchError("empty image file")
    start = data[:4]
    if start in _TIFF_STARTS:
        return
    if any(whole.startswith(start) for whole in _TIFF_STARTS):
        raise BadPatchError(f"{_CORRUPT_TIFF} ({len(data)} bytes)")
    for magic, name in _OTHER_FORMATS.items():
        if data.startswith(magic):
            raise BadPatchError(f"format {name}, expected TIFF")
    raise BadPatchError(f"not a TIFF (begins {data[:8]!r})")


def _check_frames(data: bytes) -> None:
    # walked here because Pillow takes a loop in the chain of directories for its end
    order, offset_format, first_at, count_format, entry_bytes = _TIFF_STARTS[data[:4]]
    offset_struct = struct.Struct(order + offset_format)
    count_struct = struct.Struct(order + count_format)
    seen = set()
    try:
        (offset,) = offset_struct.unpack_from(data, first_at)
        while offset:
            if offset in seen:
                raise BadPatchError(f"{_CORRUPT_TIFF} (its directories form a loop)")
            seen.add(offset)
            (n_entries,) = count_struct.unpack_from(data, offset)
            next_at = offset + count_struct.size + n_entries * entry_bytes
            (offset,) = offset_struct.unpack_from(data, next_at)
    except (struct.error, OverflowError, IndexError) as error:
        raise BadPatchError(f"{_CORRUPT_TIFF} (a directory lies past the end)") from error
    if len(seen) != 1:
        raise BadPatchError(f"{len(seen)} frames, expected 1")


def _check_tiff(image: Image.Image) -> None:
    width_px, height_px = image.size
    if width_px * height_px > _MAX_PIXELS:
        raise BadPatchError(f"image too large: size {image.size}, expected {SHAPE[:2]}")
    if image.size != SHAPE[:2]:
        raise BadPatchError(f"size {image.size}, expected {SHAPE[:2]}")
    if image.mode != "RGB":
        raise BadPatchError(f"mode {image.mode}, expected RGB")
    compression = image.info.get("compression", "raw")
    # the others are decoded by libtiff, which writes its complaints on stderr by itself
    if compression != "raw":
        raise BadPatchError(f"compression {compression}, expected none; save it uncompressed")


def _checked(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if pixels.shape != SHAPE or pixels.dtype != np.uint8:
        raise BadPatchError(f"decoded to {pixels.shape} {pixels.dtype}, expected {SHAPE}")
    return pixels


def _corrupt(what: str, error: Exception) -> BadPatchError:
    return BadPatchError(f"{what} ({error})" if str(error) else what)
