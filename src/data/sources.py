"""Every kind of source, by name: what ``ingest.archive`` and ``ingest.extra`` may point at."""

import stat
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from src.data.archives import Archive, ArchiveError, FolderArchive, ZipArchive, permission_denied
from src.data.combined import CombinedArchive
from src.data.pcam import PcamArchive, holds_pcam_files

Pins = Mapping[str, str]
"""File name → SHA-256 of h5 files that are not PatchCamelyon's published ones."""

SOURCES: Mapping[str, Callable[[Path, Pins], Archive]] = {
    ZipArchive.kind: lambda path, _: ZipArchive(path),
    FolderArchive.kind: lambda path, _: FolderArchive(path),
    PcamArchive.kind: PcamArchive,
}


def open_archive(path: Path, *, h5_sha256: Pins | None = None) -> Archive:
    """Open ``path`` as the kind it is.

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


def open_archives(
    path: Path, extra: Sequence[Path], *, no_submission: bool, h5_sha256: Pins | None = None
) -> Archive:
    """Open ``path`` and the archives whose labelled patches join it, as one.

    Raises
    ------
    ArchiveError
        One of them can't be opened, an id is in two of them, or PatchCamelyon would be used to
        train for a Kaggle submission.
    """
    archives = [open_archive(each, h5_sha256=h5_sha256) for each in (path, *extra)]
    if len(archives) == 1:
        return archives[0]
    kinds = {archive.kind for archive in archives}
    if PcamArchive.kind in kinds and len(kinds) > 1 and not no_submission:
        raise ArchiveError(
            "PatchCamelyon beside Kaggle's archive: Kaggle's test images are drawn from it, and "
            "their labels would be trained on; take it out of ingest.extra, or set "
            "ingest.no_submission: true to train without predicting them"
        )
    return CombinedArchive(archives)


def _kind_of(path: Path) -> str:
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        return PcamArchive.kind if holds_pcam_files(path) else FolderArchive.kind
    if stat.S_ISREG(mode):
        return ZipArchive.kind
    raise ArchiveError(f"not a regular file: {path}; set ingest.archive to a zip or a folder")
