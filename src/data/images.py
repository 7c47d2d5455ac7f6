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

# the tags of a plain TIFF (TIFF 6.0, section 8)
_ENTRY_BYTES = 12
_ASCII, _SHORT, _LONG = 2, 3, 4
_BYTES_OF_TYPE = {_ASCII: 1, _SHORT: 2, _LONG: 4}
_BITS, _STRIP_OFFSET, _SAMPLE_FORMAT = 258, 273, 339
_REQUIRED = {
    256: SIZE_PX,  # width
    257: SIZE_PX,  # height
    259: 1,  # no compression
    262: 2,  # RGB
    277: 3,  # samples per pixel
    279: N_BYTES,  # of the strip
}
_OPTIONAL = {254: 0, 278: SIZE_PX, 284: 1}  # whole image, rows per strip, interleaved
_TEXTS = {270, 305, 306}  # description, software, date
_KNOWN = {*_REQUIRED, *_OPTIONAL, *_TEXTS, _BITS, _STRIP_OFFSET, _SAMPLE_FORMAT}

_Entry = tuple[int, int, int]  # type, count, and the position of its value

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

    Plain is a classic TIFF with one directory and one uncompressed strip of 96 × 96 × 3 bytes:
    Kaggle's, and the generated ones. Whatever departs from that in the least, damaged files
    included, is left to Pillow, which is an order of magnitude slower and knows what to say.
    """
    if data[:4] not in (b"II*\0", b"MM\0*"):
        return None
    order = _TIFF_STARTS[data[:4]][0]
    try:
        entries = _directory(data, order)
        if entries is None or not _is_plain(data, order, entries):
            return None
        start = _number(data, order, entries[_STRIP_OFFSET])
    except struct.error:  # something is past the end
        return None
    if start is None or start + N_BYTES > len(data):
        return None
    return np.frombuffer(data, np.uint8, N_BYTES, start).reshape(SHAPE)


def _directory(data: bytes, order: str) -> dict[int, _Entry] | None:
    """The entries by tag, if it is the only directory and holds known tags in ascending order."""
    (at,) = struct.unpack_from(order + "I", data, 4)
    (n_entries,) = struct.unpack_from(order + "H", data, at)
    (following,) = struct.unpack_from(order + "I", data, at + 2 + n_entries * _ENTRY_BYTES)
    if following or n_entries > len(_KNOWN):
        return None
    entries: dict[int, _Entry] = {}
    last = 0
    for position in range(at + 2, at + 2 + n_entries * _ENTRY_BYTES, _ENTRY_BYTES):
        tag, kind, count = struct.unpack_from(order + "HHI", data, position)
        if tag <= last or tag not in _KNOWN or kind not in _BYTES_OF_TYPE:
            return None
        value_at = position + 8
        if count * _BYTES_OF_TYPE[kind] > 4:  # too long for the entry: it holds an offset
            (value_at,) = struct.unpack_from(order + "I", data, value_at)
            if value_at + count * _BYTES_OF_TYPE[kind] > len(data):
                return None
        entries[tag] = (kind, count, value_at)
        last = tag
    return entries


def _is_plain(data: bytes, order: str, entries: dict[int, _Entry]) -> bool:
    numbers = {
        tag: _number(data, order, entry)
        for tag, entry in entries.items()
        if tag in _REQUIRED or tag in _OPTIONAL
    }
    sample_format = entries.get(_SAMPLE_FORMAT)
    return (
        numbers.items() >= _REQUIRED.items()
        and all(numbers.get(tag, value) == value for tag, value in _OPTIONAL.items())
        and all(entries[tag][0] == _ASCII for tag in _TEXTS & entries.keys())
        and _BITS in entries
        and _triple(data, order, entries[_BITS]) == (8, 8, 8)
        and _STRIP_OFFSET in entries
        and (  # unsigned whole numbers
            sample_format is None
            or _number(data, order, sample_format) == 1
            or _triple(data, order, sample_format) == (1, 1, 1)
        )
    )


def _number(data: bytes, order: str, entry: _Entry) -> int | None:
    """The value of an entry that holds one whole number, else None."""
    kind, count, at = entry
    if count != 1 or kind not in (_SHORT, _LONG):
        return None
    (value,) = struct.unpack_from(order + ("H" if kind == _SHORT else "I"), data, at)
    return int(value)


def _triple(data: bytes, order: str, entry: _Entry) -> tuple[int, ...] | None:
    kind, count, at = entry
    return struct.unpack_from(order + "3H", data, at) if (kind, count) == (_SHORT, 3) else None


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
