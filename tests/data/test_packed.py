"""Reading the packed store back."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from src.data.packed import PackedStoreError, open_pixels, read_patches
from src.data.schemas import SchemaError
from src.data.split_table import SplitTableError, read_split
from src.system.durable import IntegrityError, write_manifest
from tests.data.tables import patches_frame, write_split_folder, write_store


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return write_store(tmp_path / "ingest", patches_frame([0, 1], n_test=1))


def test_pixels_are_mapped_read_only(store: Path) -> None:
    """Catches 6 GB read into memory, and a stage that paints into the store."""
    pixels = open_pixels("train", store)
    assert isinstance(pixels, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        pixels[0] = 1


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("train.npy", lambda folder: open_pixels("train", folder)),
        ("test.npy", lambda folder: open_pixels("test", folder)),
        ("patches.parquet", read_patches),
    ],
)
def test_one_flipped_bit_is_refused(store: Path, name: str, read: Callable[[Path], object]) -> None:
    """Catches a reader that trusts the disk; also after the same process has read it once."""
    read(store)
    data = bytearray((store / name).read_bytes())
    data[len(data) // 2] ^= 1
    (store / name).write_bytes(data)
    with pytest.raises(IntegrityError, match="sha256 mismatch"):
        read(store)


def test_one_flipped_bit_of_the_split_is_refused(tmp_path: Path) -> None:
    folder = write_split_folder(tmp_path, [f"{i:040x}" for i in range(3)], ["train", "val", "val"])
    assert read_split(folder / "split.parquet")["split"].tolist() == ["train", "val", "val"]
    data = bytearray((folder / "split.parquet").read_bytes())
    data[40] ^= 1
    (folder / "split.parquet").write_bytes(data)
    with pytest.raises(IntegrityError, match="sha256 mismatch"):
        read_split(folder / "split.parquet")


@pytest.mark.parametrize(
    "array",
    [np.zeros((2, 96, 96, 3), np.float32), np.zeros((2, 3, 96, 96), np.uint8)],
    ids=["float", "channels-first"],
)
def test_other_arrays_are_refused(store: Path, array: np.ndarray) -> None:
    np.save(store / "train.npy", array)
    write_manifest(store)
    with pytest.raises(PackedStoreError, match="expected uint8"):
        open_pixels("train", store)


def test_torn_files_are_refused(store: Path) -> None:
    """Catches numpy's and pyarrow's own errors where the manifest was made of torn files."""
    (store / "train.npy").write_bytes((store / "train.npy").read_bytes()[:5_000])
    (store / "patches.parquet").write_bytes(b"PAR1 no table")
    write_manifest(store)
    with pytest.raises(PackedStoreError, match="not packed pixels"):
        open_pixels("train", store)
    with pytest.raises(PackedStoreError, match="not a table of patches"):
        read_patches(store)


def test_files_without_manifest_are_refused(store: Path) -> None:
    """Catches a store that was put there by hand, or half copied."""
    (store / "manifest.json").unlink()
    with pytest.raises(IntegrityError, match="manifest missing"):
        open_pixels("train", store)


def test_table_of_an_older_version_is_refused(tmp_path: Path) -> None:
    frame = patches_frame([0, 1]).drop(columns="phash")
    store = write_store(tmp_path, frame)
    with pytest.raises(SchemaError, match="missing column phash; run: dvc repro --force ingest"):
        read_patches(store)


def test_missing_files_name_the_command(tmp_path: Path) -> None:
    with pytest.raises(PackedStoreError, match="run: dvc repro ingest"):
        open_pixels("train", tmp_path)
    with pytest.raises(PackedStoreError, match="run: dvc repro ingest"):
        read_patches(tmp_path)
    with pytest.raises(SplitTableError, match="run: dvc repro split"):
        read_split(tmp_path / "split.parquet")
