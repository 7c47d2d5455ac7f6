"""What a member of an archive may be, before its bytes are used: name, kind and size."""

import errno
import os
import re
import stat
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from src.data.archives import IMAGE_FOLDERS, MAX_IMAGE_BYTES, ArchiveError

MAX_TABLE_BYTES = 64 << 20  # Kaggle's train_labels.csv has 9.5 million

_IMAGE_PREFIXES = tuple(f"{folder}/" for folder in IMAGE_FOLDERS)


def is_unsafe(name: str) -> bool:
    parts = name.removesuffix("/").split("/")
    return (
        "\\" in name
        or any(part in ("", ".", "..") for part in parts)
        or re.match(r"[A-Za-z]:", name) is not None
    )


def check_size(name: str, n_bytes: int, path: Path) -> None:
    limit = MAX_IMAGE_BYTES if name.startswith(_IMAGE_PREFIXES) else MAX_TABLE_BYTES
    if n_bytes > limit:
        raise ArchiveError(
            f"archive too large: {name!r} in {path} has {n_bytes:,} bytes, "
            f"at most {limit:,} allowed; fetch the archive from Kaggle"
        )


def check_doubles(names: Iterable[str], path: Path) -> None:
    seen: dict[str, str] = {}
    for name in names:
        plain = name if name.isascii() else unicodedata.normalize("NFC", name)
        key = plain.casefold().rstrip("/")
        if key in seen:
            raise ArchiveError(
                f"duplicate member {name!r} in {path}: also there as {seen[key]!r}; remove one"
            )
        seen[key] = name


def check_mode(mode: int, name: str, path: Path) -> None:
    if stat.S_ISLNK(mode):
        raise ArchiveError(
            f"symlink not allowed: {name!r} in {path}; put the file itself in its place"
        )
    if not stat.S_ISREG(mode):
        raise ArchiveError(f"not a regular file: {name!r} in {path}; remove it")


@contextmanager
def opened(path: Path, *, follow_link: bool) -> Iterator[int]:
    # without O_NONBLOCK, opening a FIFO waits for its writer
    flags = os.O_RDONLY | os.O_NONBLOCK | (0 if follow_link else os.O_NOFOLLOW)
    try:
        descriptor = os.open(path, flags)
    except PermissionError as error:
        raise permission_denied(path) from error
    except OSError as error:
        if error.errno == errno.ELOOP and not follow_link:
            raise ArchiveError(f"symlink not allowed: {path}; put the file itself there") from error
        raise ArchiveError(f"can't read {path}: {error.strerror}; fetch it again") from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def permission_denied(path: Path | str) -> ArchiveError:
    """The error for a path that this user may not read."""
    return ArchiveError(f"permission denied reading {path}; allow your user to read it")
