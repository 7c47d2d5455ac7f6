"""The official PatchCamelyon files (Veeling et al. 2018) as an archive in Kaggle's layout.

PCam's train and valid patches are the labelled ones, its test patches the unlabelled ones: whoever
wants a figure comparable with published ones scores the submission against PCam's test labels.
Tables are made up in memory, so that every check of Kaggle's layout applies here too.

The HDF5 library has open heap overflows, so only files whose digest is known are opened.
"""

from __future__ import annotations

import bisect
import csv
import gzip
import hashlib
import itertools
import re
import shutil
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
from numpy.typing import NDArray

from src import paths
from src.data.archives import (
    IMAGE_SUFFIX,
    LABELS_FILE,
    SLIDES_FILE,
    SUBMISSION_FILE,
    Archive,
    ArchiveError,
    Member,
    Read,
)
from src.patch import N_BYTES, SHAPE
from src.system.durable import sha256_file
from src.system.locks import taking_turns
from src.system.log import get_logger

_SUBSETS = {"train": "train", "valid": "train", "test": "test"}  # PCam's split → Kaggle's folder
_NAME = re.compile(rf"camelyonpatch_level_2_split_({'|'.join(_SUBSETS)})_(x|y)\.h5(\.gz)?")
_BLOCK_PATCHES = 256
_MAX_UNPACKED_BYTES = 10_000_000_000  # train_x has 7.25 GB
_CHUNK_BYTES = 1 << 20
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

    x: Path
    y: Path
    meta: Path | None


class PcamArchive(Archive):
    """A folder of PatchCamelyon's ``.h5`` or ``.h5.gz`` files; ``train`` at least.

    Parameters
    ----------
    pins
        File name → SHA-256 of files that aren't the published ones.
    """

    kind = "pcam"

    def __init__(self, path: Path, pins: Mapping[str, str]) -> None:
        super().__init__(path)
        splits = _find_splits(path)
        for files in splits.values():
            _check_pins(files, pins)
        used = [file for f in splits.values() for file in (f.x, f.y)]
        self.n_bytes = sum(file.stat().st_size for file in used)
        self._unpacked = _Unpacked()
        try:
            self._open(splits)
        except BaseException:
            self.close()
            raise

    def _open(self, splits: Mapping[str, SplitFiles]) -> None:
        images = [self._unpacked.plain(files.x) for files in splits.values()]
        counts = [_count_patches(file) for file in images]
        self.reader = PcamReader(tuple(images), tuple(itertools.accumulate(counts)))
        self._labels = {
            split: _read_labels(self._unpacked.plain(files.y), n)
            for (split, files), n in zip(splits.items(), counts, strict=True)
        }
        self._ids = {split: patch_ids(split, len(y)) for split, y in self._labels.items()}
        keys = ((_SUBSETS[split], i) for split, ids in self._ids.items() for i in ids)
        self._positions = {key: position for position, key in enumerate(keys)}
        self._slides: dict[str, str] = {}
        for split, files in splits.items():
            if files.meta and _SUBSETS[split] == "train":
                slides = _read_slides(files.meta, self._labels[split])
                pairs = zip(self._ids[split], slides, strict=True)
                self._slides |= {patch_id: slide for patch_id, slide in pairs if slide}

    def images(self, folder: str) -> list[str] | None:
        if folder not in {_SUBSETS[split] for split in self._labels}:
            return None
        return [i for split, ids in self._ids.items() if _SUBSETS[split] == folder for i in ids]

    def member(self, name: str) -> Member | None:
        folder, _, file = name.partition("/")
        position = self._positions.get((folder, file.removesuffix(IMAGE_SUFFIX)))
        if position is None:
            return None
        return Member(name, N_BYTES, offset=position, encoding="raw")

    def read(self, name: str) -> bytes | None:
        if name == LABELS_FILE:
            labelled = [split for split in self._ids if _SUBSETS[split] == "train"]
            return _table(
                "id,label",
                (
                    pair
                    for s in labelled
                    for pair in zip(self._ids[s], self._labels[s], strict=True)
                ),
            )
        if name == SUBMISSION_FILE:
            return _table("id,label", ((patch_id, 0) for patch_id in self._ids.get("test", [])))
        if name == SLIDES_FILE and self._slides:
            return _table("id,slide", self._slides.items())
        return None

    def close(self) -> None:
        self._unpacked.remove()


@dataclass(frozen=True)
class PcamReader:
    """Reads patches from HDF5 in blocks; ``Member.offset`` counts the patches of all files.

    Attributes
    ----------
    files : unpacked image files
    ends : number of patches in the first one, the first two, …
    """

    files: tuple[Path, ...]
    ends: tuple[int, ...]

    @contextmanager
    def open(self) -> Iterator[Read]:
        with ExitStack() as stack:
            datasets: dict[int, Any] = {}
            # the block read last: its file, its first row, its patches
            held: tuple[int, int, NDArray[np.uint8]] = (-1, 0, np.empty((0, *SHAPE), np.uint8))

            def read(member: Member) -> bytes:
                nonlocal held
                file = bisect.bisect_right(self.ends, member.offset)
                row = member.offset - (self.ends[file - 1] if file else 0)
                if file != held[0] or not 0 <= row - held[1] < len(held[2]):
                    try:
                        if file not in datasets:
                            opened = stack.enter_context(h5py.File(self.files[file], "r"))
                            datasets[file] = opened["x"]
                        held = (file, row, datasets[file][row : row + _BLOCK_PATCHES])
                    except OSError as error:
                        name = self.files[file].name
                        raise ArchiveError(
                            f"can't read {name} ({error}); fetch it again"
                        ) from error
                return bytes(held[2][row - held[1]].tobytes())

            yield read


def holds_pcam_files(folder: Path) -> bool:
    """Whether any file of ``folder`` has the name of one of PatchCamelyon's."""
    return any(_NAME.fullmatch(file.name) for file in folder.iterdir())


def patch_ids(split: str, n: int) -> list[str]:
    """Ids of the first n patches of a split: 40 hex digits that sort as the rows do."""
    prefix = hashlib.sha1(f"pcam/{split}".encode(), usedforsecurity=False).hexdigest()[:8]
    return [f"{prefix}{row:032x}" for row in range(n)]


def _find_splits(folder: Path) -> dict[str, SplitFiles]:
    """PCam's splits in ``folder``, by name."""
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
    for split in _SUBSETS:
        if split != "train" and not {(split, "x"), (split, "y")} & found.keys():
            continue
        for part in ("x", "y"):
            if (split, part) not in found:
                raise ArchiveError(
                    f"camelyonpatch_level_2_split_{split}_{part}.h5 missing in {folder}; "
                    "fetch it, with or without .gz"
                )
        meta = folder / f"camelyonpatch_level_2_split_{split}_meta.csv"
        splits[split] = SplitFiles(
            found[split, "x"], found[split, "y"], meta if meta.is_file() else None
        )
    return splits


def _check_pins(files: SplitFiles, pins: Mapping[str, str]) -> None:
    """Refuse files that are neither published nor pinned, and labels of other images."""
    pinned = [_is_pinned(file, pins) for file in (files.x, files.y)]
    if all(pinned):
        return
    x, y = (_md5_of_gz(file) for file in (files.x, files.y))
    if Published(x, y) in _PUBLISHED:
        return
    published_x = {p.x for p in _PUBLISHED}
    if x in published_x and y in {p.y for p in _PUBLISHED}:
        raise ArchiveError(
            f"{files.y.name} doesn't hold the labels of {files.x.name}: mirrors have PCam's valid "
            "and test exchanged; fetch both files from one place"
        )
    file = files.x if x not in published_x and not pinned[0] else files.y
    raise ArchiveError(
        f"{file.name} is not one of PatchCamelyon's published .h5.gz files, and HDF5 files from "
        "elsewhere are not safe to open; if you trust it, set ingest.h5_sha256: "
        f"{{{file.name}: {sha256_file(file)}}}"
    )


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
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


class _Unpacked:
    """Files without their .gz, in ``.cache/pcam`` until :meth:`remove`.

    One process at a time unpacks; what a killed one left is cleared by the next.
    """

    def __init__(self) -> None:
        self._folder = paths.CACHE / "pcam"
        self._turn: ExitStack | None = None  # held once something was unpacked

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
        if self._turn is None:
            self._turn = ExitStack()
            waiting = "waiting for another ingest, which unpacks PatchCamelyon's files"
            lock_file = paths.CACHE / "locks" / "pcam.lock"
            self._turn.enter_context(taking_turns(lock_file, waiting=waiting, log=_LOG))
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder.mkdir()
        _LOG.info(f"unpacking {file.name} into {self._folder.parent.name}")
        target = self._folder / file.stem
        n_bytes = 0
        try:
            with gzip.open(file, "rb") as packed, target.open("wb") as plain:
                while chunk := packed.read(_CHUNK_BYTES):
                    n_bytes += len(chunk)
                    if n_bytes > _MAX_UNPACKED_BYTES:
                        raise ArchiveError(
                            f"archive too large: {file} unpacks to over 10 GB; fetch it again"
                        )
                    if len(chunk) > shutil.disk_usage(self._folder).free:
                        raise ArchiveError(f"disk full: unpacking {file.name}; free some space")
                    plain.write(chunk)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ArchiveError(
                f"truncated or corrupt gzip: {file} ({error}); fetch it again"
            ) from error
        return target

    def remove(self) -> None:
        if self._turn is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._turn.close()
            self._turn = None


def _count_patches(file: Path) -> int:
    with _dataset(file, "x") as images:
        if images.shape[1:] != SHAPE or images.dtype != np.uint8:
            raise ArchiveError(
                f"{file.name}: x is {images.dtype} {images.shape}, expected uint8 "
                "(n, 96, 96, 3); fetch it again"
            )
        return int(images.shape[0])


def _read_labels(file: Path, n: int) -> NDArray[np.uint8]:
    with _dataset(file, "y") as dataset:
        if int(np.prod(dataset.shape)) != n:
            raise ArchiveError(
                f"{file.name} has {dataset.shape} labels for {n:,} patches; fetch images and "
                "labels again, from one place"
            )
        labels = dataset[()].reshape(-1)
    if not np.isin(labels, (0, 1)).all():
        raise ArchiveError(
            f"label must be 0 or 1: {file.name} holds {labels.max()}; fetch it again"
        )
    return np.asarray(labels, dtype=np.uint8)


@contextmanager
def _dataset(file: Path, name: str) -> Iterator[Any]:
    try:
        with h5py.File(file, "r") as opened:
            yield opened[name]
    except (OSError, KeyError, AttributeError) as error:
        raise ArchiveError(f"{file.name}: no dataset {name!r} ({error}); fetch it again") from error


def _read_slides(meta: Path, labels: NDArray[np.uint8]) -> list[str]:
    """The slide (column ``wsi``) of each of n patches, from a split's meta csv; '' where blank."""
    try:
        with meta.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ArchiveError(f"not a table: {meta} ({error}); fetch it again") from error
    if not rows or "wsi" not in rows[0]:
        raise ArchiveError(f"column wsi missing in {meta}; fetch it again or remove it")
    if len(rows) != len(labels):
        raise ArchiveError(
            f"{meta} has {len(rows):,} rows, its split has {len(labels):,} patches; fetch it again"
        )
    for n, row in enumerate(rows, start=2):
        if None in row or None in row.values():
            raise ArchiveError(
                f"{meta} row {n} has not as many fields as its header; fetch it again"
            )
    centre = [str(row.get("center_tumor_patch", "")).lower() for row in rows]
    if set(centre) == {"true", "false"}:
        agree = np.array([text == "true" for text in centre]) == labels.astype(bool)
        if not agree.all():
            raise ArchiveError(
                f"{meta.name} speaks of other patches: {int((~agree).sum()):,} labels differ "
                "(mirrors have PCam's valid and test exchanged); fetch it from one place with the "
                "h5 files"
            )
    return [row["wsi"].strip() for row in rows]


def _table(header: str, rows: Iterable[tuple[object, object]]) -> bytes:
    return "".join(f"{a},{b}\n" for a, b in (header.split(","), *rows)).encode()
