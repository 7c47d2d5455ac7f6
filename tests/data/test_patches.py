"""The packed store: schemas refuse the row that breaks a rule; readers trust no disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from src.data.dataset import SplitTableError, read_split
from src.data.patches import (
    PackedStoreError,
    SchemaError,
    check_patches,
    check_split,
    duplicate_flags,
    has_flag,
    open_pixels,
    read_patches,
)
from src.system.durable import IntegrityError, write_manifest
from tests.data.tables import patches_frame, write_split_folder, write_store

Break = Callable[[pd.DataFrame], pd.DataFrame]


def set_to(column: str, value: object) -> Break:
    def broken(frame: pd.DataFrame) -> pd.DataFrame:
        changed = frame.copy()
        changed.loc[1, column] = value
        return changed

    return broken


def test_sound_tables_pass() -> None:
    frame = patches_frame([0, 1, 1], n_test=2, slides=["a", None, "b"], phash=[6, 2**63, 0, 1, 2])
    pd.testing.assert_frame_equal(check_patches(frame, "t", "r"), frame)
    quarantined = frame.copy()
    quarantined.loc[4, ["row", "sha256"]] = [-1, None]
    check_patches(quarantined, "t", "r")


@pytest.mark.parametrize(
    ("breaks", "message"),
    [
        (set_to("id", "../x"), "column id must be 40 lower-case hex digits (got '../x')"),
        (set_to("id", f"{0:040x}"), f"column id must not repeat (got '{0:040x}')"),
        (set_to("subset", "holdout"), "column subset must be one of train, test"),
        (set_to("row", 7), "row must count 0, 1, 2 … within each subset"),
        (set_to("row", 0), "row must count 0, 1, 2 … within each subset"),
        (set_to("row", -2), "column row must be ≥ -1 (got '-2')"),
        (set_to("row", -1), "sha256 must be there for every packed patch"),
        (set_to("label", 2), "column label must be 0 or 1 (got '2')"),
        (set_to("label", None), "label must be there in train, and only there"),
        (set_to("sha256", "00"), "column sha256 must be 64 hex digits (got '00')"),
        (set_to("flags", None), "column flags must not be null"),
        (set_to("submission_order", 3), "submission_order must be there in test"),
        (set_to("od_mean_g", -0.5), "column od_mean_g must be 0 to 2.5 (got '-0.5')"),
        (lambda f: f.drop(columns="phash"), "missing column phash"),
        (lambda f: f.assign(tumour=1), "unknown column tumour"),
        (lambda f: f.astype({"label": "float64"}), "column label must be of type Int8"),
    ],
)
def test_broken_tables_are_refused_in_one_line(breaks: Break, message: str) -> None:
    frame = breaks(patches_frame([0, 1, 1], n_test=2))
    with pytest.raises(SchemaError) as caught:
        check_patches(frame, "patches.parquet", "run: x")
    text = str(caught.value)
    assert text.startswith(f"patches.parquet: {message}")
    assert text.endswith("; run: x")
    assert "\n" not in text


def test_group_in_two_splits_is_refused() -> None:
    """Catches a leak at the hand-over, whoever wrote the table."""
    frame = pd.DataFrame(
        {"id": [f"{i:040x}" for i in range(3)], "split": ["train", "val", "val"], "group": "a"}
    )
    with pytest.raises(SchemaError, match="group must lie in one split as a whole"):
        check_split(frame, "split.parquet", "run: x")
    check_split(frame.assign(group=["a", "b", "b"]), "split.parquet", "run: x")


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


def test_every_copy_names_the_first() -> None:
    """Catches chains of copies of copies, and unread patches taken for each other's copy."""
    flags = duplicate_flags(["a", "b", "c", "d", "e", "f"], ["x", "y", "x", "x", "", ""])
    assert flags == ["", "", "duplicate_of:a", "duplicate_of:a", "", ""]


def test_flags_are_matched_whole() -> None:
    flags = pd.Series(["", "blank_white", "duplicate_of:blank_white", "blank_black,duplicate_of:x"])
    assert has_flag(flags, "blank_").tolist() == [False, True, False, True]
    assert has_flag(flags, "duplicate_").tolist() == [False, False, True, True]
