"""One patch's TIFF bytes to pixels, or the exact reason why not.

Kaggle's own way of writing a patch is read by ``plain_tiff``, everything else by Pillow.
TensorFlow doesn't decode TIFF, and Pillow opens far more than a patch may be (a renamed PNG,
CMYK, 16 bits, several pages, 400 megapixels in 4 kB), so everything is checked before a pixel is
decoded.
"""

import hashlib
import io
import logging
import struct
import warnings

import numpy as np
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin

from src.data.archives import BadPatchError
from src.data.plain_tiff import read_plain

PATCH_SIZE_PX = 96
PATCH_SHAPE = (PATCH_SIZE_PX, PATCH_SIZE_PX, 3)
PATCH_BYTES = PATCH_SIZE_PX * PATCH_SIZE_PX * 3

_MAX_PIXELS = 1_000_000  # beyond it the size isn't a mistake but a bomb
_CORRUPT = "truncated or corrupt TIFF"

# start of the file → struct formats of: first offset and where it stands, entry count, next offset
_CLASSIC, _BIG = ("I", 4, "H", 12), ("Q", 8, "Q", 20)
_TIFF_STARTS = {
    b"II*\0": ("<", *_CLASSIC),
    b"MM\0*": (">", *_CLASSIC),
    b"II+\0": ("<", *_BIG),
    b"MM\0+": (">", *_BIG),
}
_OTHER_FORMATS = {
    b"\x89PNG": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"GIF8": "GIF",
    b"BM": "BMP",
    b"RIFF": "WEBP",
    b"\x89HDF": "HDF5",
    b"%PDF": "PDF",
}

# where nobody listens, Pillow's error records would reach stderr beside our one line
logging.getLogger("PIL").addHandler(logging.NullHandler())


def decode_patch(data: bytes) -> NDArray[np.uint8]:
    """Decode one patch.

    Parameters
    ----------
    data
        The bytes of a TIFF file.

    Returns
    -------
    (96, 96, 3) uint8, RGB.

    Raises
    ------
    BadPatchError
        Anything but one whole, uncompressed 8-bit RGB TIFF of 96 × 96 px, as Kaggle's are.
    """
    plain = read_plain(data)
    if plain is not None:
        return plain
    _check_format(data)
    _check_frames(data)
    try:
        with warnings.catch_warnings():
            # Pillow warns, and goes on, where tags are cut off or contradict each other
            warnings.simplefilter("error")
            # the plugin itself: Image.open would try other formats, and warn about bombs on stderr
            with TiffImagePlugin.TiffImageFile(io.BytesIO(data)) as image:
                _check_image(image)
                pixels = np.asarray(image)
    except BadPatchError:
        raise
    except Exception as error:  # whatever broken tags make of Pillow, the file is what is broken
        raise BadPatchError(f"{_CORRUPT} ({error})" if str(error) else _CORRUPT) from error
    if pixels.shape != PATCH_SHAPE or pixels.dtype != np.uint8:
        raise BadPatchError(f"decoded to {pixels.shape} {pixels.dtype}, expected {PATCH_SHAPE}")
    return pixels


def raw_patch(data: bytes) -> NDArray[np.uint8]:
    """The (96, 96, 3) uint8 pixels, read-only, whose bytes ``data`` are: rows from the top, RGB."""
    if len(data) != PATCH_BYTES:
        raise BadPatchError(f"{len(data):,} bytes of pixels, expected {PATCH_BYTES:,}")
    return np.frombuffer(data, np.uint8).reshape(PATCH_SHAPE)


def sha256_pixels(pixels: NDArray[np.uint8]) -> str:
    """SHA-256 of a patch's 27,648 pixel bytes, rows from the top, RGB, as 64 hex digits."""
    return hashlib.sha256(np.ascontiguousarray(pixels).data).hexdigest()


def _check_format(data: bytes) -> None:
    if not data:
        raise BadPatchError("empty image file")
    start = data[:4]
    if start in _TIFF_STARTS:
        return
    if any(whole.startswith(start) for whole in _TIFF_STARTS):
        raise BadPatchError(f"{_CORRUPT} ({len(data)} bytes)")
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
                raise BadPatchError(f"{_CORRUPT} (its directories form a loop)")
            seen.add(offset)
            (n_entries,) = count_struct.unpack_from(data, offset)
            next_at = offset + count_struct.size + n_entries * entry_bytes
            (offset,) = offset_struct.unpack_from(data, next_at)
    except (struct.error, OverflowError, IndexError) as error:
        raise BadPatchError(f"{_CORRUPT} (a directory lies past the end)") from error
    if len(seen) != 1:
        raise BadPatchError(f"{len(seen)} frames, expected 1")


def _check_image(image: Image.Image) -> None:
    width_px, height_px = image.size
    if width_px * height_px > _MAX_PIXELS:
        raise BadPatchError(f"image too large: size {image.size}, expected {PATCH_SHAPE[:2]}")
    if image.size != PATCH_SHAPE[:2]:
        raise BadPatchError(f"size {image.size}, expected {PATCH_SHAPE[:2]}")
    if image.mode != "RGB":
        raise BadPatchError(f"mode {image.mode}, expected RGB")
    compression = image.info.get("compression", "raw")
    # the others are decoded by libtiff, which writes its complaints on stderr by itself
    if compression != "raw":
        raise BadPatchError(f"compression {compression}, expected none; save it uncompressed")
