"""The official PatchCamelyon files (Veeling et al. 2018) as an archive in Kaggle's layout.

PCam's train and valid patches are the labelled ones, its test patches the unlabelled ones: whoever
wants a figure comparable with published ones scores the submission against PCam's test labels.
Tables are made up in memory, so that every check of Kaggle's layout applies here too.
"""

import bisect
import csv
import hashlib
import itertools
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from src.data.archives import IMAGE_SUFFIX, Archive, ArchiveError, Member, Read
from src.data.labels import LABELS_FILE, SLIDES_FILE, SUBMISSION_FILE
from src.data.pcam_files import SplitFiles, Unpacking, check_pins, find_splits
from src.data.tiff import PATCH_BYTES, PATCH_SHAPE

_FOLDER_OF_SPLIT = {"train": "train", "valid": "train", "test": "test"}
_BLOCK_PATCHES = 256


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
            blocks = _Blocks(self, stack)
            yield lambda member: blocks.patch(member.offset).tobytes()


class _Blocks:
    """The block that was read last, and the files that have been opened."""

    def __init__(self, reader: PcamReader, stack: ExitStack) -> None:
        self._reader, self._stack = reader, stack
        self._datasets: dict[int, Any] = {}
        self._file, self._start = -1, 0
        self._block = np.empty((0, *PATCH_SHAPE), np.uint8)

    def patch(self, position: int) -> NDArray[np.uint8]:
        file = bisect.bisect_right(self._reader.ends, position)
        row = position - (self._reader.ends[file - 1] if file else 0)
        if file != self._file or not 0 <= row - self._start < len(self._block):
            self._file, self._start = file, row
            try:
                self._block = self._dataset(file)[row : row + _BLOCK_PATCHES]
            except OSError as error:
                name = self._reader.files[file].name
                raise ArchiveError(f"can't read {name} ({error}); fetch it again") from error
        return np.asarray(self._block[row - self._start])

    def _dataset(self, file: int) -> Any:
        import h5py

        if file not in self._datasets:
            opened = self._stack.enter_context(h5py.File(self._reader.files[file], "r"))
            self._datasets[file] = opened["x"]
        return self._datasets[file]


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
        splits = find_splits(path)
        for files in splits.values():
            check_pins(files, pins)
        used = [file for f in splits.values() for file in (f.x, f.y)]
        self.n_bytes = sum(file.stat().st_size for file in used)
        self._unpacking = Unpacking(path)
        try:
            self._open(splits)
        except BaseException:
            self.close()
            raise

    def images(self, folder: str) -> list[str] | None:
        if folder not in {_FOLDER_OF_SPLIT[split] for split in self._labels}:
            return None
        return [i for s, ids in self._ids.items() if _FOLDER_OF_SPLIT[s] == folder for i in ids]

    def member(self, name: str) -> Member | None:
        folder, _, file = name.partition("/")
        position = self._positions.get((folder, file.removesuffix(IMAGE_SUFFIX)))
        if position is None:
            return None
        return Member(name, PATCH_BYTES, offset=position, encoding="raw")

    def read(self, name: str) -> bytes | None:
        if name == LABELS_FILE:
            rows = (
                f"{patch_id},{label}"
                for split, ids in self._ids.items()
                if _FOLDER_OF_SPLIT[split] == "train"
                for patch_id, label in zip(ids, self._labels[split].tolist(), strict=True)
            )
            return _table("id,label", rows)
        if name == SUBMISSION_FILE:
            return _table("id,label", (f"{patch_id},0" for patch_id in self._ids.get("test", [])))
        if name == SLIDES_FILE and self._slides:
            return _table("id,slide", (f"{i},{slide}" for i, slide in self._slides.items()))
        return None

    def close(self) -> None:
        self._unpacking.end()

    def _open(self, splits: Mapping[str, SplitFiles]) -> None:
        images = [self._unpacking.plain(files.x) for files in splits.values()]
        counts = [_count_patches(file) for file in images]
        self.reader = PcamReader(tuple(images), tuple(itertools.accumulate(counts)))
        self._labels = {
            split: _read_labels(self._unpacking.plain(files.y), n)
            for (split, files), n in zip(splits.items(), counts, strict=True)
        }
        self._ids = {split: patch_ids(split, len(y)) for split, y in self._labels.items()}
        keys = (
            (_FOLDER_OF_SPLIT[split], patch_id)
            for split, ids in self._ids.items()
            for patch_id in ids
        )
        self._positions = {key: position for position, key in enumerate(keys)}
        self._slides = {
            patch_id: slide
            for split, files in splits.items()
            if files.meta and _FOLDER_OF_SPLIT[split] == "train"
            for patch_id, slide in zip(
                self._ids[split], read_slides(files.meta, self._labels[split]), strict=True
            )
            if slide
        }


def patch_ids(split: str, n: int) -> list[str]:
    """Ids of the first n patches of a split: 40 hex digits that sort as the rows do."""
    prefix = hashlib.sha1(f"pcam/{split}".encode(), usedforsecurity=False).hexdigest()[:8]
    return [f"{prefix}{row:032x}" for row in range(n)]


def read_slides(meta: Path, labels: NDArray[np.uint8]) -> list[str]:
    """The slide (column ``wsi``) of each of n patches, from a split's meta csv; '' where blank.

    Raises
    ------
    ArchiveError
        There is no such column, not n rows, a row with fields too few or too many, or its labels
        are those of another split's patches.
    """
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


def _count_patches(file: Path) -> int:
    images = _dataset_of(file, "x")
    if images["shape"][1:] != PATCH_SHAPE or images["dtype"] != np.uint8:
        raise ArchiveError(
            f"{file.name}: x is {images['dtype']} {images['shape']}, expected uint8 "
            "(n, 96, 96, 3); fetch it again"
        )
    return int(images["shape"][0])


def _read_labels(file: Path, n: int) -> NDArray[np.uint8]:
    found = _dataset_of(file, "y")
    if int(np.prod(found["shape"])) != n:
        raise ArchiveError(
            f"{file.name} has {found['shape']} labels for {n:,} patches; fetch images and labels "
            "again, from one place"
        )
    labels = _dataset_of(file, "y", values=True)["values"].reshape(-1)
    if not np.isin(labels, (0, 1)).all():
        raise ArchiveError(
            f"label must be 0 or 1: {file.name} holds {labels.max()}; fetch it again"
        )
    return np.asarray(labels, dtype=np.uint8)


def _dataset_of(file: Path, name: str, *, values: bool = False) -> dict[str, Any]:
    import h5py

    try:
        with h5py.File(file, "r") as opened:
            dataset = opened[name]
            found = {"shape": tuple(dataset.shape), "dtype": dataset.dtype}
            return found | ({"values": dataset[()]} if values else {})
    except (OSError, KeyError, AttributeError) as error:
        raise ArchiveError(f"{file.name}: no dataset {name!r} ({error}); fetch it again") from error


def _table(header: str, rows: Iterable[str]) -> bytes:
    return "".join(f"{row}\n" for row in itertools.chain((header,), rows)).encode()
