"""Reading the packed store back."""

from pathlib import Path

import numpy as np
import pytest

from src.data.packed import PackedStoreError, open_pixels, read_patches
from src.system.durable import IntegrityError, write_manifest


@pytest.fixture
def store(tmp_path: Path) -> Path:
    np.save(tmp_path / "train.npy", np.zeros((2, 96, 96, 3), np.uint8))
    write_manifest(tmp_path)
    return tmp_path


def test_pixels_are_mapped_read_only(store: Path) -> None:
    """Catches 6 GB read into memory, and a stage that paints into the store."""
    pixels = open_pixels("train", store, verify=True)
    assert isinstance(pixels, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        pixels[0] = 1


@pytest.mark.parametrize("verify", [False, True])
def test_one_flipped_bit_is_refused_on_request(store: Path, verify: bool) -> None:
    data = bytearray((store / "train.npy").read_bytes())
    data[-1] ^= 1
    (store / "train.npy").write_bytes(data)
    if verify:
        with pytest.raises(IntegrityError, match="sha256 mismatch"):
            open_pixels("train", store, verify=True)
    else:
        assert open_pixels("train", store)[-1, -1, -1, -1] == 1


@pytest.mark.parametrize(
    "array",
    [np.zeros((2, 96, 96, 3), np.float32), np.zeros((2, 3, 96, 96), np.uint8)],
    ids=["float", "channels-first"],
)
def test_other_arrays_are_refused(store: Path, array: np.ndarray) -> None:
    np.save(store / "train.npy", array)
    with pytest.raises(PackedStoreError, match="expected uint8"):
        open_pixels("train", store)


def test_torn_files_are_refused(store: Path) -> None:
    (store / "train.npy").write_bytes((store / "train.npy").read_bytes()[:5_000])
    (store / "patches.parquet").write_bytes(b"PAR1 no table")
    with pytest.raises(PackedStoreError, match="not packed pixels"):
        open_pixels("train", store)
    with pytest.raises(PackedStoreError, match="not a table of patches"):
        read_patches(store)


def test_missing_files_name_the_command(tmp_path: Path) -> None:
    with pytest.raises(PackedStoreError, match="run: dvc repro ingest"):
        open_pixels("train", tmp_path)
    with pytest.raises(PackedStoreError, match="run: dvc repro ingest"):
        read_patches(tmp_path)
