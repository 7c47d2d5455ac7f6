"""Patches to predict, wherever they lie: a folder, a zip, a csv list of files, or a ``.npy``.

Unlike the archives that ``ingest`` reads these need no layout and no labels. They are trusted as
little: names, kinds and sizes are checked as there.
"""

import csv
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from src.data.archives import ArchiveError, BadPatchError, Member
from src.data.folder_archive import FolderReader
from src.data.images import IMAGE_SUFFIXES, decode_image
from src.data.tiff import PATCH_SHAPE
from src.data.zip_archive import ZipArchive
from src.system.errors import ProjectError

ALLOWED = (
    "allowed are a folder or a zip of tif, tiff and png files, a csv with a column 'path', or a "
    ".npy of shape (n, 96, 96, 3) uint8"
)
_ZIP_STARTS = (b"PK\x03\x04", b"PK\x05\x06")

ReadPatch = Callable[[int], NDArray[np.uint8]]


class InputError(ProjectError):
    """What was given to predict can't be used as a whole."""


@dataclass(frozen=True)
class PatchInput:
    """Patches in a fixed order, read one by one.

    Attributes
    ----------
    ids
        One a patch, each once: the file's stem, the id in the list, or the row.
    names
        How each is called in messages.
    opened
        Context of a function from position to (96, 96, 3) uint8, which raises
        :class:`BadPatchError` where that one patch can't be used.
    """

    ids: Sequence[str]
    names: Sequence[str]
    opened: Callable[[], AbstractContextManager[ReadPatch]]


@dataclass(frozen=True)
class PatchBatch:
    """Consecutive patches ``first`` … ``first + n - 1`` of an input.

    ``pixels`` (k, 96, 96, 3) uint8 are the k usable ones; ``usable`` (k,) says which of the n those
    are, ``bad`` why the others aren't, by position from 0.
    """

    first: int
    n: int
    pixels: NDArray[np.uint8]
    usable: NDArray[np.int64]
    bad: dict[int, str]


def open_input(path: Path) -> PatchInput:
    """Open ``path`` as the kind it is; no pixel is read yet.

    Raises
    ------
    InputError
        Nothing is there, it is of another kind, holds no patch, or two patches have one id.
    ArchiveError
        It is a zip that fails a check of :class:`ZipArchive`.
    """
    try:
        found = _open(path)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"can't read {path}: {error}; {ALLOWED}") from error
    if not found.ids:
        raise InputError(f"no patches in {path}; {ALLOWED}")
    patch_id, n = Counter(found.ids).most_common(1)[0]
    if n > 1:
        raise InputError(
            f"id {patch_id!r} comes {n:,} times in {path}; give each its own id in a csv with the "
            "columns path and id"
        )
    return found


def batches(source: PatchInput, *, batch_size: int) -> Iterator[PatchBatch]:
    """Every patch once, in order; one batch is in memory at a time."""
    with source.opened() as read:
        for first in range(0, len(source.ids), batch_size):
            n = min(batch_size, len(source.ids) - first)
            pixels, usable, bad = [], [], {}
            for i in range(n):
                try:
                    pixels.append(read(first + i))
                    usable.append(i)
                except BadPatchError as error:
                    bad[i] = str(error)
            stacked = np.stack(pixels) if pixels else np.empty((0, *PATCH_SHAPE), np.uint8)
            yield PatchBatch(first, n, stacked, np.array(usable, np.int64), bad)


def _open(path: Path) -> PatchInput:
    if path.is_dir():
        return _from_files(*_files_below(path))
    if not path.is_file():
        state = "not a regular file" if path.exists() else "not found"
        raise InputError(f"input {state}: {path}; {ALLOWED}")
    if path.suffix.lower() == ".npy":
        return _from_array(path)
    if path.suffix.lower() == ".csv":
        return _from_files(*_listed(path))
    with path.open("rb") as file:
        if file.read(4) in _ZIP_STARTS:
            return _from_zip(path)
    raise InputError(f"unknown kind of input: {path}; {ALLOWED}")


def _is_image(name: str) -> bool:
    parts = PurePosixPath(name).parts
    # what file managers leave beside images looks like images
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in parts)
    return name.lower().endswith(IMAGE_SUFFIXES) and not hidden


def _files_below(folder: Path) -> tuple[list[Path], list[str]]:
    names = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*"))
    files = [folder / name for name in names if _is_image(name)]
    return files, [file.stem for file in files]


def _listed(path: Path) -> tuple[list[Path], list[str]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file)
        if "path" not in (rows.fieldnames or []):
            found = ", ".join(map(str, rows.fieldnames or [])) or "none"
            raise InputError(
                f"no column 'path' in {path}, found {found}; its first line names the columns: "
                "path, and id if it isn't the file's stem"
            )
        files, ids = [], []
        for row in rows:
            if not row["path"]:
                raise InputError(f"empty path in line {rows.line_num} of {path}; fill it in")
            files.append(path.parent / row["path"])
            ids.append(row.get("id") or files[-1].stem)
    return files, ids


def _from_files(files: list[Path], ids: list[str]) -> PatchInput:
    @contextmanager
    def opened() -> Iterator[ReadPatch]:
        yield lambda i: decode_image(_file_bytes(files[i]))

    return PatchInput(ids, [str(file) for file in files], opened)


def _file_bytes(file: Path) -> bytes:
    try:
        with FolderReader(file.parent).open() as read:
            return read(Member(file.name, 0))
    except ArchiveError as error:  # of this file, not of all
        raise BadPatchError(str(error).partition(";")[0]) from error


def _from_zip(path: Path) -> PatchInput:
    archive = ZipArchive(path)
    members = [archive.member(name) for name in sorted(filter(_is_image, archive.names()))]
    found = [member for member in members if member is not None]

    @contextmanager
    def opened() -> Iterator[ReadPatch]:
        with archive.reader.open() as read:
            yield lambda i: decode_image(read(found[i]))

    ids = [PurePosixPath(member.name).stem for member in found]
    return PatchInput(ids, [f"{path}:{member.name}" for member in found], opened)


def _from_array(path: Path) -> PatchInput:
    try:
        pixels = np.lib.format.open_memmap(path, mode="r")
    except ValueError as error:
        raise InputError(f"not a readable .npy: {path} ({error}); {ALLOWED}") from error
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[1:] != PATCH_SHAPE:
        raise InputError(f"{path} holds {pixels.shape} {pixels.dtype}; {ALLOWED}")

    @contextmanager
    def opened() -> Iterator[ReadPatch]:
        yield lambda i: np.asarray(pixels[i])

    ids = [str(i) for i in range(len(pixels))]
    return PatchInput(ids, [f"row {i} of {path}" for i in ids], opened)
