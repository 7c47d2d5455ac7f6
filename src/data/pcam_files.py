"""PatchCamelyon's HDF5 files: found by name, pinned before they are opened, unpacked on the side.

The HDF5 library has open heap overflows, so only files whose digest is known are opened.
"""

import gzip
import hashlib
import re
import shutil
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock, Timeout

from src import paths
from src.data.archives import ArchiveError
from src.system.durable import sha256_file
from src.system.log import get_logger

_SPLITS = ("train", "valid", "test")
_NAME = re.compile(rf"camelyonpatch_level_2_split_({'|'.join(_SPLITS)})_(x|y)\.h5(\.gz)?")
_MAX_UNPACKED_BYTES = 10_000_000_000  # train_x has 7.25 GB
_CHUNK_BYTES = 1 << 20
_UNPACKED = "pcam-"  # folders below .cache
_LOG = get_logger("ingest")


class Published(NamedTuple):
    """MD5 of the .gz files of images and labels that belong together."""

    x: str
    y: str


# The dataset's README and torchvision (torchvision/datasets/pcam.py). Mirrors have valid and test
# exchanged, so what counts is which labels belong to which images, not which is called what.
_PUBLISHED = {
    Published("1571f514728f59376b705fc836ff4b63", "35c2d7259d906cfc8143347bb8e05be7"),
    Published("d8c2d60d490dbd479f8199bdfa0cf6ec", "60a7035772fbdb7f34eb86d4420cf66a"),
    Published("d5b63470df7cfa627aeec8b9dc0c066e", "2b85f58b927af9964a4c15b8f7e8f179"),
}


@dataclass(frozen=True)
class SplitFiles:
    """Images and labels of one of PCam's splits, and its table of slides if it is there."""

    split: str
    x: Path
    y: Path
    meta: Path | None


def holds_pcam_files(folder: Path) -> bool:
    """Whether any file of ``folder`` has the name of one of PatchCamelyon's."""
    return any(_NAME.fullmatch(file.name) for file in folder.iterdir())


def find_splits(folder: Path) -> dict[str, SplitFiles]:
    """PCam's splits that lie in ``folder``, by name.

    Raises
    ------
    ArchiveError
        One of images and labels is missing, is there twice, or isn't a plain file; or no train.
    """
    found: dict[tuple[str, str], Path] = {}
    for file in sorted(folder.iterdir()):
        name = _NAME.fullmatch(file.name)
        if name is None:
            continue
        if file.is_symlink() or not file.is_file():
            raise ArchiveError(f"not a regular file: {file}; put the file itself there")
        key = (name[1], name[2])
        if key in found:
            raise ArchiveError(f"{found[key].name} and {file.name} in {folder}; remove one")
        found[key] = file
    splits = {}
    for split in (s for s in _SPLITS if any(s == key[0] for key in found)):
        for part in ("x", "y"):
            if (split, part) not in found:
                raise ArchiveError(
                    f"camelyonpatch_level_2_split_{split}_{part}.h5 missing in {folder}; "
                    "fetch it, with or without .gz"
                )
        meta = folder / f"camelyonpatch_level_2_split_{split}_meta.csv"
        splits[split] = SplitFiles(
            split, found[split, "x"], found[split, "y"], meta if meta.is_file() else None
        )
    if "train" not in splits:
        raise ArchiveError(f"camelyonpatch_level_2_split_train_x.h5 missing in {folder}; fetch it")
    return splits


def check_pins(files: SplitFiles, pins: Mapping[str, str]) -> None:
    """Refuse files that are neither published nor pinned, and labels of other images.

    Raises
    ------
    ArchiveError
        With the digest that was found and the line of params.yaml that would pin it.
    """
    pinned = [_is_pinned(file, pins) for file in (files.x, files.y)]
    if all(pinned):
        return
    x, y = (_md5_of_gz(file) for file in (files.x, files.y))
    if Published(x, y) in _PUBLISHED:
        return
    if x in {p.x for p in _PUBLISHED} and y in {p.y for p in _PUBLISHED}:
        raise ArchiveError(
            f"{files.y.name} doesn't hold the labels of {files.x.name}: mirrors have PCam's valid "
            "and test exchanged; fetch both files from one place"
        )
    file = files.x if x not in {p.x for p in _PUBLISHED} and not pinned[0] else files.y
    raise ArchiveError(
        f"{file.name} is not one of PatchCamelyon's published .h5.gz files, and HDF5 files from "
        "elsewhere are not safe to open; if you trust it, set ingest.h5_sha256: "
        f"{{{file.name}: {sha256_file(file)}}}"
    )


class Unpacking:
    """Files of one archive without their .gz, in a folder below ``.cache`` until :meth:`end`.

    One process at a time unpacks an archive. What a killed one left, of any archive, is cleared
    away by the next that unpacks.
    """

    def __init__(self, archive: Path) -> None:
        key = hashlib.sha256(str(archive.resolve()).encode()).hexdigest()[:16]
        self._folder = paths.CACHE / f"{_UNPACKED}{key}"
        self._lock: FileLock | None = None

    def plain(self, file: Path) -> Path:
        """``file`` itself, or its content without .gz.

        Raises
        ------
        ArchiveError
            The .gz is damaged, or unpacks to more than PatchCamelyon's largest file, or to more
            than fits.
        """
        if file.suffix != ".gz":
            return file
        if self._lock is None:
            self._begin()
        _LOG.info(f"unpacking {file.name} into {self._folder.parent.name}")
        target = self._folder / file.stem
        _unpack(file, target)
        return target

    def end(self) -> None:
        """Remove what was unpacked."""
        if self._lock is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._lock.release()
            self._lock = None

    def _begin(self) -> None:
        self._lock = _lock_of(self._folder)
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            _LOG.info("waiting for another ingest, which unpacks the same files")
            self._lock.acquire()
        _clear_left()
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir()


def _lock_of(folder: Path) -> FileLock:
    locks = paths.CACHE / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    return FileLock(locks / f"{folder.name}.lock")


def _clear_left() -> None:
    """Remove folders that nobody holds the lock of: their process was killed."""
    for folder in paths.CACHE.glob(f"{_UNPACKED}*"):
        lock = _lock_of(folder)
        try:
            with lock.acquire(timeout=0):
                shutil.rmtree(folder, ignore_errors=True)
        except Timeout:
            continue


def _unpack(file: Path, target: Path) -> None:
    n_bytes = 0
    try:
        with gzip.open(file, "rb") as packed, target.open("wb") as plain:
            while chunk := packed.read(_CHUNK_BYTES):
                n_bytes += len(chunk)
                if n_bytes > _MAX_UNPACKED_BYTES:
                    raise ArchiveError(
                        f"archive too large: {file} unpacks to over 10 GB; fetch it again"
                    )
                if len(chunk) > shutil.disk_usage(target.parent).free:
                    raise ArchiveError(f"disk full: unpacking {file.name}; free some space")
                plain.write(chunk)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ArchiveError(
            f"truncated or corrupt gzip: {file} ({error}); fetch it again"
        ) from error


def _is_pinned(file: Path, pins: Mapping[str, str]) -> bool:
    if file.name not in pins:
        return False
    found = sha256_file(file)
    if found != pins[file.name]:
        raise ArchiveError(
            f"sha256 mismatch: {file} has {found}, ingest.h5_sha256 says {pins[file.name]}; "
            "fetch it again or correct the pin"
        )
    return True


def _md5_of_gz(file: Path) -> str:
    """MD5 as PatchCamelyon publishes it; '' of unpacked files, whose digests nobody published."""
    if file.suffix != ".gz":
        return ""
    digest = hashlib.md5(usedforsecurity=False)
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
