"""Every kind of source, by name: what ``ingest.archive`` and ``ingest.extra`` may point at."""

import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from src.data.archives import Archive, ArchiveError
from src.data.combined import CombinedArchive
from src.data.folder_archive import FolderArchive
from src.data.member_checks import permission_denied
from src.data.pcam import PcamArchive
from src.data.pcam_files import holds_pcam_files
from src.data.zip_archive import ZipArchive

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
    with _refusing(path):
        return SOURCES[_kind_of(path)](path, h5_sha256 or {})


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
    every = (path, *extra)
    if not no_submission:
        _check_kinds(every)  # before gigabytes are unpacked
    with ExitStack() as stack:
        archives = []
        for each in every:
            archives.append(open_archive(each, h5_sha256=h5_sha256))
            stack.callback(archives[-1].close)
        archive = archives[0] if len(archives) == 1 else CombinedArchive(archives)
        stack.pop_all()  # from here on, closing them is the caller's business
    return archive


def _check_kinds(every: Sequence[Path]) -> None:
    kinds = set()
    for path in every:
        with _refusing(path):
            kinds.add(_kind_of(path))
    if PcamArchive.kind in kinds and len(kinds) > 1:
        raise ArchiveError(
            "PatchCamelyon beside Kaggle's archive: Kaggle's test images are drawn from it, and "
            "their labels would be trained on; take it out of ingest.extra, or set "
            "ingest.no_submission: true to train without predicting them"
        )


@contextmanager
def _refusing(path: Path) -> Iterator[None]:
    """Say of a missing or unreadable archive what to do."""
    try:
        yield
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
