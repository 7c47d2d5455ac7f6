"""What an archive is: members that passed every check, in a zip or in the folder it unpacks to.

An archive holds ``train/<id>.tif``, ``test/<id>.tif``, ``train_labels.csv``,
``sample_submission.csv`` and perhaps ``slides.csv``. Nothing in it is trusted: names, kinds and
sizes of all members are checked before the first byte of one is used, and no path is ever built
from a name in a zip.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import struct
import unicodedata
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

from src.system.durable import sha256_file
from src.system.errors import ProjectError

IMAGE_FOLDERS = ("train", "test")
IMAGE_SUFFIX = ".tif"
LABELS_FILE = "train_labels.csv"
SUBMISSION_FILE = "sample_submission.csv"
SLIDES_FILE = "slides.csv"

MAX_IMAGE_BYTES = 1 << 20  # Kaggle's patches have 27,935
MAX_TABLE_BYTES = 64 << 20  # Kaggle's train_labels.csv has 9.5 million
MAX_RATIO = 100  # of unpacked to stored bytes

_ENCRYPTED = 0x1  # bit of a zip member's flags
_LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, length of the name, of the extra field


class ArchiveError(ProjectError):
    """The archive as a whole can't be used."""


class BadPatchError(ProjectError):
    """One image can't be used; it may be quarantined (``ingest.max_bad``)."""


class Member(NamedTuple):
    """One file of an archive.

    Attributes
    ----------
    n_bytes
        Once read.
    offset, stored_bytes, method, crc32
        Where and how a zip stores it; in PatchCamelyon's files ``offset`` counts patches.
    encoding
        What the bytes are: ``tiff``, or ``raw`` pixels.
    """

    name: str
    n_bytes: int
    offset: int = 0
    stored_bytes: int = 0
    method: int = zipfile.ZIP_STORED
    crc32: int = 0
    encoding: str = "tiff"


Read = Callable[[Member], bytes]


class Reader(Protocol):
    """Reads members in any process; pickles to a few bytes, unlike the archive's directory."""

    @contextmanager
    def open(self) -> Iterator[Read]:
        """Yield a function from member to its bytes.

        That function raises :class:`BadPatchError` where one member is damaged and
        :class:`ArchiveError` where the archive is.
        """


class Archive(ABC):
    """Members of an archive that passed every check of names, kinds and sizes.

    Raises
    ------
    ArchiveError
        It can't be opened, or a member is unsafe, doubled, too large, or not a plain file.
    """

    kind: ClassVar[str]
    n_bytes: int
    reader: Reader

    def __init__(self, path: Path) -> None:
        self.path = path

    @abstractmethod
    def images(self, folder: str) -> list[str] | None:
        """Names without ``.tif`` of the images in ``folder``, in any order; None: no folder."""

    @abstractmethod
    def member(self, name: str) -> Member | None:
        """The member of that name; None where there is none."""

    def close(self) -> None:  # noqa: B027
        """Remove what was unpacked to read it."""

    def summary(self) -> dict[str, Any]:
        """Its name (not its path, which differs between machines), kind and size in bytes."""
        return {"name": self.path.name, "kind": self.kind, "bytes": self.n_bytes}

    def read(self, name: str) -> bytes | None:
        """All bytes of the file ``name``; None where there is none."""
        member = self.member(name)
        if member is None:
            return None
        with self.reader.open() as read:
            try:
                return read(member)
            except BadPatchError as error:
                raise ArchiveError(f"archive corrupt: {error}; fetch it again") from error


class FolderArchive(Archive):
    """A folder as Kaggle's zip unpacks; other files in it are ignored."""

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
        _check_doubles(names, path)
        self._sizes: dict[str, int] = {}
        for name in names:
            if name in (LABELS_FILE, SUBMISSION_FILE, SLIDES_FILE) or _is_image(name):
                status = (path / name).stat(follow_symlinks=False)
                _check_mode(status.st_mode, name, path)
                _check_size(name, status.st_size, path)
                self._sizes[name] = status.st_size
        self.n_bytes = sum(self._sizes.values())

    def images(self, folder: str) -> list[str] | None:
        return _images_in(folder, self._sizes) if folder in self._folders else None

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
        with _opened(self.path / member.name, follow_link=False) as descriptor:
            _check_mode(os.fstat(descriptor).st_mode, member.name, self.path)
            with os.fdopen(os.dup(descriptor), "rb") as file:
                data = file.read(MAX_TABLE_BYTES + 1)
        _check_size(member.name, len(data), self.path)
        return data


class ZipArchive(Archive):
    """A zip, read in place: never unpacked."""

    kind = "zip"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.reader = ZipReader(path)
        infos = _zip_directory(path)
        self.n_bytes = path.stat().st_size
        for info in infos:
            _check_zip_member(info, path)
            # a size that isn't there would be allocated before it is found missing
            if not 0 <= info.header_offset <= self.n_bytes - info.compress_size:
                raise _incomplete(path, f"{info.filename} lies outside it")
        _check_doubles((info.filename for info in infos), path)
        self._folders = {info.filename.partition("/")[0] for info in infos if "/" in info.filename}
        self._infos = {info.filename: info for info in infos if not info.is_dir()}

    def summary(self) -> dict[str, Any]:
        """Also the SHA-256 of its bytes, which ``python -m src.trace`` looks for."""
        return {**super().summary(), "sha256": sha256_file(self.path)}

    def images(self, folder: str) -> list[str] | None:
        return _images_in(folder, self._infos) if folder in self._folders else None

    def names(self) -> list[str]:
        """Of all its files, in any folder."""
        return list(self._infos)

    def member(self, name: str) -> Member | None:
        info = self._infos.get(name)
        if info is None:
            return None
        return Member(
            name=name,
            n_bytes=info.file_size,
            offset=info.header_offset,
            stored_bytes=info.compress_size,
            method=info.compress_type,
            crc32=info.CRC,
        )


@dataclass(frozen=True)
class ZipReader:
    """Reads stored and deflated members at the offsets that the zip's directory gave."""

    path: Path

    @contextmanager
    def open(self) -> Iterator[Read]:
        with _opened(self.path, follow_link=True) as descriptor:
            yield lambda member: self._read(descriptor, member)

    def _read(self, descriptor: int, member: Member) -> bytes:
        name = member.name.encode()
        header = os.pread(descriptor, _LOCAL_HEADER.size + len(name), member.offset)
        try:
            signature, n_name, n_extra = _LOCAL_HEADER.unpack_from(header)
        except struct.error as error:
            raise _incomplete(self.path, f"{member.name} lies past its end") from error
        if signature != b"PK\x03\x04" or header[_LOCAL_HEADER.size :] != name:
            raise _incomplete(self.path, f"{member.name} is not where the directory says")
        start = member.offset + _LOCAL_HEADER.size + n_name + n_extra
        data = os.pread(descriptor, member.stored_bytes, start)
        if len(data) != member.stored_bytes:
            raise _incomplete(self.path, f"{member.name} lies past its end")
        if member.method == zipfile.ZIP_DEFLATED:
            try:
                # one byte more than promised, and no further: shows a member that lies about its
                # size without unpacking a bomb
                data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, member.n_bytes + 1)
            except zlib.error as error:
                raise BadPatchError(f"truncated or corrupt zip member {member.name}") from error
        if len(data) != member.n_bytes or zlib.crc32(data) != member.crc32:
            raise BadPatchError(f"truncated or corrupt zip member {member.name}")
        return data


def read_table_file(path: Path) -> bytes:
    """All bytes of the table ``ingest.slides``, which is in no archive; neither link nor pipe.

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


def permission_denied(path: Path | str) -> ArchiveError:
    """The error for a path that this user may not read."""
    return ArchiveError(f"permission denied reading {path}; allow your user to read it")


def _is_image(name: str) -> bool:
    """Whether ``name`` is ``<folder>/<file>.tif``."""
    return name.endswith(IMAGE_SUFFIX) and name.count("/") == 1


def _images_in(folder: str, names: Iterable[str]) -> list[str]:
    prefix = f"{folder}/"
    return [
        name.removeprefix(prefix).removesuffix(IMAGE_SUFFIX)
        for name in names
        if name.startswith(prefix) and _is_image(name)
    ]


def _names_in(root: Path, prefix: str) -> list[str]:
    """Names relative to ``root`` of what is directly in ``root/prefix``, except folders.

    A folder named like an image is kept, to be refused.
    """
    with os.scandir(root / prefix) as entries:
        return [
            prefix + entry.name
            for entry in entries
            if entry.name.endswith(IMAGE_SUFFIX) or not entry.is_dir(follow_symlinks=False)
        ]


def _zip_directory(path: Path) -> list[zipfile.ZipInfo]:
    with _opened(path, follow_link=True) as descriptor, os.fdopen(os.dup(descriptor), "rb") as file:
        start = file.read(4)
        try:
            with zipfile.ZipFile(file) as archive:
                return archive.infolist()
        except (
            zipfile.BadZipFile,
            NotImplementedError,
            ValueError,
            OSError,
            struct.error,
        ) as error:
            if start.startswith(b"PK") or not start:
                raise _incomplete(path, str(error)) from error
            raise ArchiveError(
                f"not a zip archive: {path}; set ingest.archive to the Kaggle zip "
                "or the folder it unpacks to"
            ) from error


def _check_zip_member(info: zipfile.ZipInfo, path: Path) -> None:
    parts = info.filename.removesuffix("/").split("/")
    if (
        # zipfile cuts names at NUL: what it shows would not be what the zip holds
        info.orig_filename != info.filename
        or "\\" in info.filename
        or any(part in ("", ".", "..") for part in parts)
        or re.match(r"[A-Za-z]:", info.filename)
    ):
        raise ArchiveError(
            f"unsafe member {info.orig_filename!r} in {path}: names must be plain relative "
            "paths; fetch the archive from Kaggle"
        )
    if info.is_dir():
        return
    mode = info.external_attr >> 16
    if stat.S_IFMT(mode):
        _check_mode(mode, info.filename, path)
    if info.flag_bits & _ENCRYPTED:
        raise ArchiveError(f"encrypted member {info.filename!r} in {path}; zip it without password")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ArchiveError(
            f"compression method {info.compress_type} of {info.filename!r} in {path}, expected "
            "stored or deflated; zip it again with deflate"
        )
    _check_size(info.filename, info.file_size, path)
    # one-coloured patches deflate to less than a hundredth: only larger members can do harm
    if info.file_size > max(MAX_IMAGE_BYTES, MAX_RATIO * info.compress_size):
        raise ArchiveError(
            f"archive too large: {info.filename!r} in {path} unpacks to over {MAX_RATIO} times "
            "its stored size; fetch the archive from Kaggle"
        )


def _check_size(name: str, n_bytes: int, path: Path) -> None:
    is_patch = name.partition("/")[0] in IMAGE_FOLDERS and "/" in name
    limit = MAX_IMAGE_BYTES if is_patch else MAX_TABLE_BYTES
    if n_bytes > limit:
        raise ArchiveError(
            f"archive too large: {name!r} in {path} has {n_bytes:,} bytes, "
            f"at most {limit:,} allowed; fetch the archive from Kaggle"
        )


def _check_doubles(names: Iterable[str], path: Path) -> None:
    """Refuse names that some file system would take for one: by case, or by composed accents."""
    seen: dict[str, str] = {}
    for name in names:
        plain = name if name.isascii() else unicodedata.normalize("NFC", name)
        key = plain.casefold().rstrip("/")
        if key in seen:
            raise ArchiveError(
                f"duplicate member {name!r} in {path}: also there as {seen[key]!r}; remove one"
            )
        seen[key] = name


def _check_mode(mode: int, name: str, path: Path) -> None:
    if stat.S_ISLNK(mode):
        raise ArchiveError(
            f"symlink not allowed: {name!r} in {path}; put the file itself in its place"
        )
    if not stat.S_ISREG(mode):
        raise ArchiveError(f"not a regular file: {name!r} in {path}; remove it")


@contextmanager
def _opened(path: Path, *, follow_link: bool) -> Iterator[int]:
    """A file descriptor to read from; never waits."""
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


def _incomplete(path: Path, reason: str) -> ArchiveError:
    return ArchiveError(f"archive incomplete: {path} ({reason}); fetch it again")
