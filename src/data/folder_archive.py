"""A folder as Kaggle's zip unpacks; neither links are followed nor pipes waited for."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from src.data.archives import IMAGE_FOLDERS, IMAGE_SUFFIX, Archive, ArchiveError, Member, Read
from src.data.labels import LABELS_FILE, SLIDES_FILE, SUBMISSION_FILE
from src.data.member_checks import (
    MAX_TABLE_BYTES,
    check_doubles,
    check_mode,
    check_size,
    opened,
)

_TABLES = (LABELS_FILE, SUBMISSION_FILE, SLIDES_FILE)


class FolderArchive(Archive):
    """A folder in Kaggle's layout; what else lies in it is none of our business."""

    kind = "folder"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.reader = FolderReader(path)
        self._folders = {name for name in IMAGE_FOLDERS if (path / name).is_dir()}
        names = _names_in(path, "")
        if not self._folders and LABELS_FILE not in names:
            raise ArchiveError(
                f"not a Kaggle-layout folder: {path} holds none of train, test and "
                f"{LABELS_FILE}; set ingest.archive to the zip or the folder it unpacks to"
            )
        for folder in sorted(self._folders):
            names += _names_in(path, f"{folder}/")
        check_doubles(names, path)
        self._sizes = {name: _checked_size(path, name) for name in names if _is_used(name)}
        self.n_bytes = sum(self._sizes.values())

    def images(self, folder: str) -> list[str] | None:
        if folder not in self._folders:
            return None
        prefix = f"{folder}/"
        return [
            name.removeprefix(prefix).removesuffix(IMAGE_SUFFIX)
            for name in self._sizes
            if name.startswith(prefix)
        ]

    def member(self, name: str) -> Member | None:
        return Member(name, self._sizes[name]) if name in self._sizes else None


@dataclass(frozen=True)
class FolderReader:
    """Reads files below a folder; neither follows links nor waits for pipes."""

    path: Path

    @contextmanager
    def open(self) -> Iterator[Read]:
        yield self._read

    def _read(self, member: Member) -> bytes:
        with opened(self.path / member.name, follow_link=False) as descriptor:
            check_mode(os.fstat(descriptor).st_mode, member.name, self.path)
            with os.fdopen(os.dup(descriptor), "rb") as file:
                data = file.read(MAX_TABLE_BYTES + 1)
        check_size(member.name, len(data), self.path)
        return data


def read_table_file(path: Path) -> bytes:
    """All bytes of a table that lies outside any archive; neither link nor pipe.

    Raises
    ------
    ArchiveError
        It is missing, may not be read, isn't a plain file, or has over 64 MiB.
    """
    if not path.exists() and not path.is_symlink():
        raise ArchiveError(f"slides file not found: {path}; set ingest.slides")
    if path.is_dir():
        raise ArchiveError(f"slides file is a folder: {path}; set ingest.slides to the csv in it")
    with FolderReader(path.parent).open() as read:
        return read(Member(path.name, 0))


def _is_used(name: str) -> bool:
    return name.endswith(IMAGE_SUFFIX) if "/" in name else name in _TABLES


def _names_in(root: Path, prefix: str) -> list[str]:
    """Names relative to ``root`` of what lies directly in ``root/prefix``, but for folders.

    A folder named like an image is kept, to be refused.
    """
    with os.scandir(root / prefix) as entries:
        return [
            prefix + entry.name
            for entry in entries
            if entry.name.endswith(IMAGE_SUFFIX) or not entry.is_dir(follow_symlinks=False)
        ]


def _checked_size(root: Path, name: str) -> int:
    status = (root / name).stat(follow_symlinks=False)
    check_mode(status.st_mode, name, root)
    check_size(name, status.st_size, root)
    return status.st_size
