"""One patch from the bytes of a TIFF or PNG file, or the exact reason why not."""

import io
import struct
import warnings

import numpy as np
from numpy.typing import NDArray
from PIL import PngImagePlugin

from src.data.archives import MAX_IMAGE_BYTES, BadPatchError
from src.data.tiff import PATCH_SHAPE, PATCH_SIZE_PX, decode_patch

IMAGE_SUFFIXES = (".tif", ".tiff", ".png")

_PNG_START = b"\x89PNG\r\n\x1a\n"
_HEADER = struct.Struct(">4sIIBBBBB")  # IHDR, which comes first, after its length
_HEADER_AT = len(_PNG_START) + 4
_RGB = 2
_COLOUR_TYPES = {0: "grey", _RGB: "RGB", 3: "palette", 4: "grey with alpha", 6: "RGB with alpha"}
_CORRUPT = "truncated or corrupt PNG"


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
    return decode_png(data) if data.startswith(_PNG_START) else decode_patch(data)


def decode_png(data: bytes) -> NDArray[np.uint8]:
    """As :func:`src.data.tiff.decode_patch`, of a PNG.

    Size and kind of pixel are read from its header before Pillow sees it: Pillow would silently
    make 8 bits of 16, and allocate whatever size the header claims.
    """
    _check_header(data)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            # the plugin itself: Image.open would try other formats
            with PngImagePlugin.PngImageFile(io.BytesIO(data)) as image:
                if getattr(image, "n_frames", 1) != 1:
                    raise BadPatchError(f"{image.n_frames} frames, expected 1")
                pixels = np.asarray(image)
    except BadPatchError:
        raise
    except Exception as error:  # whatever broken chunks make of Pillow, the file is what is broken
        raise BadPatchError(f"{_CORRUPT} ({error})" if str(error) else _CORRUPT) from error
    if pixels.shape != PATCH_SHAPE or pixels.dtype != np.uint8:
        raise BadPatchError(f"decoded to {pixels.shape} {pixels.dtype}, expected {PATCH_SHAPE}")
    return pixels


def _check_header(data: bytes) -> None:
    try:
        name, width_px, height_px, bits, colour, *_ = _HEADER.unpack_from(data, _HEADER_AT)
    except struct.error as error:
        raise BadPatchError(f"{_CORRUPT} ({len(data)} bytes)") from error
    if name != b"IHDR":
        raise BadPatchError(f"{_CORRUPT} (begins with {name!r})")
    if (width_px, height_px) != (PATCH_SIZE_PX, PATCH_SIZE_PX):
        raise BadPatchError(f"size {(width_px, height_px)}, expected {PATCH_SHAPE[:2]}")
    if colour != _RGB:
        raise BadPatchError(f"pixels are {_COLOUR_TYPES.get(colour, 'unknown')}, expected RGB")
    if bits != 8:
        raise BadPatchError(f"{bits} bits a channel, expected 8")
