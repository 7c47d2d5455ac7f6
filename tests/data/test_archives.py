"""Zip and folder show the same members with the same bytes."""

import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from src.data.archives import ArchiveError
from src.data.sources import open_archive
from tests.data.archives import patch_id, tiny_files, write_archive, write_zip


@pytest.mark.parametrize("kind", ["zip", "folder"])
def test_contract(tmp_path: Path, kind: str) -> None:
    """Catches a source that loses, invents or renames members."""
    files = tiny_files()
    archive = open_archive(write_archive(kind, tmp_path, files | {"train/notes.txt": b"x"}))
    assert archive.kind == kind
    assert sorted(archive.images("train") or []) == [patch_id(n) for n in range(1, 7)]
    assert sorted(archive.images("test") or []) == [patch_id(n) for n in range(101, 104)]
    assert archive.images("valid") is None
    assert archive.member("train/none.tif") is None
    assert archive.read("slides.csv") is None
    assert {name: archive.read(name) for name in files} == files


def test_claimed_size_is_checked_before_it_is_allocated(tmp_path: Path) -> None:
    """Catches 4 GB of memory for a member of a 20 kB zip (found by the fuzzer)."""
    archive = write_zip(tmp_path / "a.zip", tiny_files())
    data = bytearray(archive.read_bytes())
    entry = data.rindex(b"PK\x01\x02")
    data[entry + 20 : entry + 24] = (2**32 - 2).to_bytes(4, "little")
    archive.write_bytes(data)
    with pytest.raises(ArchiveError, match="archive incomplete"):
        open_archive(archive)


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    ("replace", "core"), [(Path.symlink_to, "symlink not allowed"), (None, "not a regular file")]
)
def test_file_exchanged_after_the_check(
    tmp_path: Path, replace: Callable[..., None] | None, core: str
) -> None:
    """Catches following a link, or waiting at a pipe, that came after the folder was checked."""
    folder = write_archive("folder", tmp_path, tiny_files())
    archive = open_archive(folder)
    (folder / "train_labels.csv").rename(tmp_path / "elsewhere.csv")
    if replace:
        replace(folder / "train_labels.csv", tmp_path / "elsewhere.csv")
    else:
        os.mkfifo(folder / "train_labels.csv")
    with pytest.raises(ArchiveError, match=core):
        archive.read("train_labels.csv")


def test_what_a_folder_holds_besides_is_not_looked_at(tmp_path: Path) -> None:
    """Catches refusing a folder for the zip it was unpacked from, or for somebody's link."""
    folder = write_archive("folder", tmp_path, tiny_files())
    with (folder / "histopathologic-cancer-detection.zip").open("wb") as file:
        file.truncate(100 << 20)
    (folder / "latest").symlink_to(tmp_path)
    (folder / "train" / "thumbs.db").symlink_to(tmp_path)
    archive = open_archive(folder)
    assert len(archive.images("train") or []) == 6
    assert archive.n_bytes == sum(map(len, tiny_files().values()))


@pytest.mark.parametrize("kind", ["zip", "folder"])
def test_linked_archive_is_read(tmp_path: Path, kind: str) -> None:
    """Catches refusing the link that DVC may put in place of a tracked archive."""
    target = write_archive(kind, tmp_path, tiny_files())
    link = tmp_path / "link"
    link.symlink_to(target)
    assert len(open_archive(link).images("train") or []) == 6


def test_zip_behind_other_bytes_is_read(tmp_path: Path) -> None:
    """Catches offsets taken from the start of the file where the zip begins later."""
    path = write_zip(tmp_path / "archive.zip", tiny_files())
    path.write_bytes(b"#!/bin/sh\n" + path.read_bytes())
    assert open_archive(path).read("train_labels.csv") == tiny_files()["train_labels.csv"]


def test_zip64_offsets_are_read(tmp_path: Path) -> None:
    """Catches Kaggle's zip, over 4 GiB in newer dumps, being read at the wrong places."""
    path = tmp_path / "archive.zip"
    with zipfile.ZipFile(path, "w", allowZip64=True) as archive:
        for name, data in tiny_files().items():
            with archive.open(name, "w", force_zip64=True) as member:
                member.write(data)
    assert open_archive(path).read("train_labels.csv") == tiny_files()["train_labels.csv"]


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_compression_is_refused(tmp_path: Path, method: int) -> None:
    path = tmp_path / "archive.zip"
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("train_labels.csv", b"id,label\n" * 10)
    with pytest.raises(ArchiveError, match=f"compression method {method}"):
        open_archive(path)


def test_encrypted_member_is_refused(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "archive.zip", {"train_labels.csv": b"id,label\n"})
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(data)
    with pytest.raises(ArchiveError, match="encrypted member"):
        open_archive(path)
