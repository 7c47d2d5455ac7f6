"""A zip in Kaggle's layout, read in place at the offsets that its directory gives."""

import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from src.data.archives import (
    IMAGE_FOLDERS,
    IMAGE_SUFFIX,
    MAX_IMAGE_BYTES,
    Archive,
    ArchiveError,
    BadPatchError,
    Member,
    Read,
)
from src.data.member_checks import (
    check_doubles,
    check_mode,
    check_size,
    is_unsafe,
    opened,
)
from src.system.durable import sha256_file

MAX_RATIO = 100
# one-coloured patches deflate to less than a hundredth; only larger members can do harm
_RATIO_FREE_BYTES = MAX_IMAGE_BYTES

_ENCRYPTED = 0x1
_LOCAL_HEADER = struct.Struct("<4s22xHH")


class ZipArchive(Archive):
    """A zip, read in place: never unpacked."""

    kind = "zip"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.reader = ZipReader(path)
        infos = _read_zip_directory(path)
        self.n_bytes = path.stat().st_size
        for info in infos:
            _check_zip_member(info, path)
            # a size that isn't there would be allocated before it is found missing
            if not 0 <= info.header_offset <= self.n_bytes - info.compress_size:
                raise _incomplete(path, f"{info.filename} lies outside it")
        check_doubles((info.filename for info in infos), path)
        self._folders = {
            folder
            for folder in IMAGE_FOLDERS
            if any(info.filename.startswith(f"{folder}/") for info in infos)
        }
        self._infos = {info.filename: info for info in infos if not info.is_dir()}

    def summary(self) -> dict[str, Any]:
        """Also the SHA-256 of its bytes, which ``python -m src.trace`` looks for."""
        return {**super().summary(), "sha256": sha256_file(self.path)}

    def images(self, folder: str) -> list[str] | None:
        if folder not in self._folders:
            return None
        prefix = f"{folder}/"
        inside = (name.removeprefix(prefix) for name in self._infos if name.startswith(prefix))
        return [
            name.removesuffix(IMAGE_SUFFIX)
            for name in inside
            if name.endswith(IMAGE_SUFFIX) and "/" not in name
        ]

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
        with opened(self.path, follow_link=True) as descriptor:
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
        stored = os.pread(descriptor, member.stored_bytes, start)
        if len(stored) != member.stored_bytes:
            raise _incomplete(self.path, f"{member.name} lies past its end")
        return _inflate(stored, member)


def _read_zip_directory(path: Path) -> list[zipfile.ZipInfo]:
    with opened(path, follow_link=True) as descriptor, os.fdopen(os.dup(descriptor), "rb") as file:
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
    # zipfile cuts names at NUL: what it shows would not be what the zip holds
    if info.orig_filename != info.filename or is_unsafe(info.filename):
        raise ArchiveError(
            f"unsafe member {info.orig_filename!r} in {path}: names must be plain relative "
            "paths; fetch the archive from Kaggle"
        )
    if info.is_dir():
        return
    mode = info.external_attr >> 16
    if stat.S_IFMT(mode):
        check_mode(mode, info.filename, path)
    if info.flag_bits & _ENCRYPTED:
        raise ArchiveError(f"encrypted member {info.filename!r} in {path}; zip it without password")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ArchiveError(
            f"compression method {info.compress_type} of {info.filename!r} in {path}, expected "
            "stored or deflated; zip it again with deflate"
        )
    check_size(info.filename, info.file_size, path)
    if info.file_size > max(_RATIO_FREE_BYTES, MAX_RATIO * info.compress_size):
        raise ArchiveError(
            f"archive too large: {info.filename!r} in {path} unpacks to over {MAX_RATIO} times "
            "its stored size; fetch the archive from Kaggle"
        )


def _inflate(stored: bytes, member: Member) -> bytes:
    if member.method == zipfile.ZIP_STORED:
        data = stored
    else:
        try:
            # one byte more than promised, and no further, shows a member that lies about its size
            data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(stored, member.n_bytes + 1)
        except zlib.error as error:
            raise BadPatchError(f"truncated or corrupt zip member {member.name}") from error
    if len(data) != member.n_bytes or zlib.crc32(data) != member.crc32:
        raise BadPatchError(f"truncated or corrupt zip member {member.name}")
    return data


def _incomplete(path: Path, reason: str) -> ArchiveError:
    return ArchiveError(f"archive incomplete: {path} ({reason}); fetch it again")
