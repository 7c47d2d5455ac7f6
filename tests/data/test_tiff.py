"""TIFF bytes to pixels: exact values, and our own error for anything broken."""

import hashlib
import warnings

import numpy as np
import pytest
from PIL import Image

from src.data.archives import BadPatchError
from src.data.tiff import decode_patch, sha256_pixels
from tests.data.archives import pixels_of, saved, tiff

PIXELS = pixels_of(1)


def test_pixels_are_the_bytes_of_the_strip_in_order() -> None:
    """Catches swapped channels, and rows taken for columns."""
    pixels = np.zeros((96, 96, 3), np.uint8)
    pixels[2, 5] = (10, 20, 30)
    decoded = decode_patch(tiff(pixels))
    assert decoded[2, 5].tolist() == [10, 20, 30]
    assert (decoded.shape, decoded.dtype) == ((96, 96, 3), np.uint8)
    np.testing.assert_array_equal(decoded, pixels)


@pytest.mark.parametrize("big", [False, True], ids=["classic", "BigTIFF"])
def test_both_headers_are_read(big: bool) -> None:
    data = saved(Image.fromarray(PIXELS), big_tiff=big)
    assert data[2] == (43 if big else 42)
    np.testing.assert_array_equal(decode_patch(data), PIXELS)


@pytest.mark.parametrize("compression", ["jpeg", "tiff_lzw", "tiff_adobe_deflate", "packbits"])
def test_compressed_tiff_is_refused(compression: str) -> None:
    """Catches lossy pixels taken for the originals, and libtiff writing on stderr by itself."""
    data = saved(Image.fromarray(PIXELS), compression=compression)
    with pytest.raises(BadPatchError, match=f"compression {compression}, expected none"):
        decode_patch(data)


def test_digest_is_of_the_pixel_bytes() -> None:
    """Catches a digest that changes with compression, or with the array's memory order."""
    expected = hashlib.sha256(PIXELS.tobytes()).hexdigest()
    assert sha256_pixels(decode_patch(tiff(PIXELS))) == expected
    assert sha256_pixels(np.asfortranarray(PIXELS)) == expected


def test_cut_anywhere_is_refused() -> None:
    """Catches a truncated image filled up with grey."""
    data = tiff(PIXELS)
    for length in [*range(130), *range(130, len(data), 997)]:
        with pytest.raises(BadPatchError, match=r"empty image file|truncated or corrupt TIFF"):
            decode_patch(data[:length])


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
                decode_patch(bytes(broken))
            except BadPatchError:
                n_refused += 1
    assert n_refused > 400
    assert warned == []
    assert capfd.readouterr().err == ""
