"""PNG and TIFF bytes to one patch: whole 8-bit RGB of 96 × 96 px, or why not."""

import io
import struct

import numpy as np
import pytest
from PIL import Image

from src.data.archives import BadPatchError
from src.data.images import decode_image
from tests.tracking.support import patches

PATCH = patches(1)[0]


def coded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_pixels_come_back(kind):
    """Catches BGR for RGB, and a suffix trusted more than the bytes."""
    np.testing.assert_array_equal(decode_image(coded(Image.fromarray(PATCH), kind)), PATCH)


SMALL = Image.fromarray(PATCH[:95])
WRONG = {
    "size": (coded(SMALL), r"size \(96, 95\), expected \(96, 96\)"),
    "grey": (coded(Image.new("L", (96, 96))), "pixels are grey, expected RGB"),
    "alpha": (coded(Image.new("RGBA", (96, 96))), "pixels are RGB with alpha"),
    "palette": (coded(Image.new("P", (96, 96))), "pixels are palette"),
    "frames": (
        coded(Image.fromarray(PATCH), save_all=True, append_images=[Image.new("RGB", (96, 96))]),
        "2 frames, expected 1",
    ),
    "truncated": (coded(Image.fromarray(PATCH))[:-5000], "truncated or corrupt PNG"),
    "header only": (coded(Image.fromarray(PATCH))[:12], "truncated or corrupt PNG"),
    "jpeg": (coded(Image.fromarray(PATCH), "JPEG"), "format JPEG"),
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
    data = bytearray(coded(Image.fromarray(PATCH)))
    data[16 : 16 + len(header)] = header
    with pytest.raises(BadPatchError, match=reason):
        decode_image(bytes(data))
