"""Where patches come from: the archives ``ingest`` reads, any input of ``predict``, Kaggle.

Archives have Kaggle's layout and labels. Inputs of ``predict`` need neither, and are trusted as
little: names, kinds and sizes are checked in the same way.
"""

from __future__ import annotations

import contextlib
import csv
import importlib.util
import io
import shutil
import stat
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from logging import Logger
from pathlib import Path, PurePosixPath
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from requests import HTTPError, RequestException

from src.data.archives import (
    Archive,
    ArchiveError,
    BadPatchError,
    FolderArchive,
    FolderReader,
    Member,
    ZipArchive,
    permission_denied,
)
from src.data.images import IMAGE_SUFFIXES, decode_image
from src.data.pcam import PcamArchive, holds_pcam_files
from src.patch import SHAPE
from src.system.errors import ProjectError

Pins = Mapping[str, str]
"""File name → SHA-256 of h5 files that are not PatchCamelyon's published ones."""

SOURCES: Mapping[str, Callable[[Path, Pins], Archive]] = {
    ZipArchive.kind: lambda path, _: ZipArchive(path),
    FolderArchive.kind: lambda path, _: FolderArchive(path),
    PcamArchive.kind: PcamArchive,
}
"""Every kind of archive, by name. A new one is an entry here and a line in ``_kind_of``."""

COMPETITION = "histopathologic-cancer-detection"
KAGGLE_ARCHIVE = f"{COMPETITION}.zip"

_RULES = f"https://www.kaggle.com/c/{COMPETITION}/rules"
_CREDENTIALS = (
    "create a token at https://www.kaggle.com/settings/api and export KAGGLE_API_TOKEN, or save "
    "it as ~/.kaggle/access_token"
)
_REFUSALS = {
    401: f"Kaggle doesn't know these credentials; {_CREDENTIALS}",
    403: f"Kaggle refuses the download: accept the competition's rules at {_RULES} first",
    404: f"Kaggle has no competition {COMPETITION}; see {_RULES}",
}

_ALLOWED_INPUTS = (
    "allowed are a folder or a zip of tif, tiff and png files, a csv with a column 'path', or a "
    ".npy of shape (n, 96, 96, 3) uint8"
)
_ZIP_STARTS = (b"PK\x03\x04", b"PK\x05\x06")

ReadPatch = Callable[[int], NDArray[np.uint8]]


class InputError(ProjectError):
    """What was given to predict can't be used as a whole."""


class DownloadError(ProjectError):
    """The archive can't be fetched."""


def open_archive(path: Path, *, h5_sha256: Pins | None = None) -> Archive:
    """Open ``path`` as the kind of archive it is.

    Raises
    ------
    ArchiveError
        Nothing is there, it may not be read, or it fails a check of :class:`Archive`.
    """
    try:
        return SOURCES[_kind_of(path)](path, h5_sha256 or {})
    except FileNotFoundError as error:
        raise ArchiveError(
            f"archive not found: {path}; set ingest.archive in params.yaml to the Kaggle zip "
            "or the folder it unpacks to"
        ) from error
    except PermissionError as error:
        raise permission_denied(error.filename or path) from error


def _kind_of(path: Path) -> str:
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        return PcamArchive.kind if holds_pcam_files(path) else FolderArchive.kind
    if stat.S_ISREG(mode):
        return ZipArchive.kind
    raise ArchiveError(f"not a regular file: {path}; set ingest.archive to a zip or a folder")


@dataclass(frozen=True)
class PatchInput:
    """Patches in a fixed order, read one by one.

    Attributes
    ----------
    ids
        One per patch, each once: the file's stem, the id in the list, or the row.
    names
        What messages call each.
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
    """Open ``path`` as the kind of input it is; no pixel is read yet.

    Raises
    ------
    InputError
        Nothing is there, it is of another kind, holds no patch, or two patches have one id.
    ArchiveError
        It is a zip that fails a check of :class:`ZipArchive`.
    """
    try:
        found = _open_input(path)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"can't read {path}: {error}; {_ALLOWED_INPUTS}") from error
    if not found.ids:
        raise InputError(f"no patches in {path}; {_ALLOWED_INPUTS}")
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
            stacked = np.stack(pixels) if pixels else np.empty((0, *SHAPE), np.uint8)
            yield PatchBatch(first, n, stacked, np.array(usable, np.int64), bad)


def _open_input(path: Path) -> PatchInput:
    if path.is_dir():
        names = sorted(file.relative_to(path).as_posix() for file in path.rglob("*"))
        files = [path / name for name in names if _is_image(name)]
        return _from_files(files, [file.stem for file in files])
    if not path.is_file():
        state = "not a regular file" if path.exists() else "not found"
        raise InputError(f"input {state}: {path}; {_ALLOWED_INPUTS}")
    if path.suffix.lower() == ".npy":
        return _from_array(path)
    if path.suffix.lower() == ".csv":
        return _from_files(*_listed(path))
    with path.open("rb") as file:
        if file.read(4) in _ZIP_STARTS:
            return _from_zip(path)
    raise InputError(f"unknown kind of input: {path}; {_ALLOWED_INPUTS}")


def _is_image(name: str) -> bool:
    parts = PurePosixPath(name).parts
    # what file managers leave beside images looks like images
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in parts)
    return name.lower().endswith(IMAGE_SUFFIXES) and not hidden


def _listed(path: Path) -> tuple[list[Path], list[str]]:
    """Files and ids of a csv with the columns path and, where it isn't the file's stem, id."""
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
    def read_patch(i: int) -> NDArray[np.uint8]:
        try:
            with FolderReader(files[i].parent).open() as read:
                data = read(Member(files[i].name, 0))
        except ArchiveError as error:  # of this file, not of all
            raise BadPatchError(str(error).partition(";")[0]) from error
        return decode_image(data)

    return PatchInput(
        ids, [str(file) for file in files], lambda: contextlib.nullcontext(read_patch)
    )


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
        raise InputError(f"not a readable .npy: {path} ({error}); {_ALLOWED_INPUTS}") from error
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[1:] != SHAPE:
        raise InputError(f"{path} holds {pixels.shape} {pixels.dtype}; {_ALLOWED_INPUTS}")
    rows = range(len(pixels))
    return PatchInput(
        [str(i) for i in rows],
        [f"row {i} of {path}" for i in rows],
        lambda: contextlib.nullcontext(lambda i: np.asarray(pixels[i])),
    )


class KaggleClient(Protocol):
    """What is used of ``kaggle.api.kaggle_api_extended.KaggleApi``."""

    def authenticate(self) -> None:
        """Find credentials; ends the process without any."""

    def competition_download_files(
        self, competition: str, path: str, force: bool, quiet: bool
    ) -> None:
        """Download ``<competition>.zip`` into ``path``; goes on with a partial file."""


def kaggle_client() -> KaggleClient:
    """Kaggle's own client, ready to use; it comes with the extra ``kaggle``.

    Raises
    ------
    DownloadError
        It isn't installed, or there are no credentials.
    """
    if importlib.util.find_spec("kaggle") is None:
        raise DownloadError(
            "Kaggle's client is not installed; run: make data, which installs it and downloads"
        )
    # importing it already looks for credentials, and prints a page without any
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            from kaggle.api.kaggle_api_extended import KaggleApi

            client: KaggleClient = KaggleApi()
            client.authenticate()
        except SystemExit as error:
            raise DownloadError(f"no Kaggle credentials; {_CREDENTIALS}") from error
        except (OSError, ValueError) as error:
            raise DownloadError(f"can't use the Kaggle credentials ({error})") from error
    return client


def download_archive(folder: Path, client: KaggleClient, log: Logger) -> Path:
    """Fetch Kaggle's archive into ``folder``, unless a sound one is there; return its path.

    An interrupted download goes on where it stopped. ``folder`` gets the archive only when all of
    it agrees with the checksums in it; what doesn't is deleted, or Kaggle's client would take it
    for done because of its size.

    Raises
    ------
    DownloadError
        No network, credentials that Kaggle doesn't know, or rules not accepted.
    ArchiveError
        What came isn't a sound zip.
    """
    archive = folder / KAGGLE_ARCHIVE
    if archive.is_file():
        try:
            ZipArchive(archive)
        except ArchiveError as error:
            raise ArchiveError(f"{error}: delete {archive} and run again") from error
        log.info(f"{KAGGLE_ARCHIVE} is there already: not downloaded again")
        return archive
    partial = folder / ".partial"
    partial.mkdir(parents=True, exist_ok=True)
    log.info(f"downloading {KAGGLE_ARCHIVE} (6.3 GB) from Kaggle")
    try:
        client.competition_download_files(COMPETITION, path=str(partial), force=False, quiet=False)
    except HTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        raise DownloadError(_REFUSALS.get(status, f"Kaggle answered {error}; try later")) from error
    except RequestException as error:
        raise DownloadError(
            f"can't reach Kaggle ({type(error).__name__}); check the network and run again, "
            "it goes on where it stopped"
        ) from error
    log.info(f"checking {KAGGLE_ARCHIVE}")
    try:
        downloaded = ZipArchive(partial / KAGGLE_ARCHIVE)
        with downloaded.reader.open() as read:
            for member in filter(None, map(downloaded.member, downloaded.names())):
                read(member)  # compares with the member's checksum; a minute for all
    except (ArchiveError, BadPatchError) as error:
        shutil.rmtree(partial)
        raise ArchiveError(f"the download is damaged, and deleted: {error}; run again") from error
    (partial / KAGGLE_ARCHIVE).replace(archive)
    shutil.rmtree(partial)
    return archive
