"""Writes that are whole or absent: temporary name, fsync, rename, fsync of the folder.

A folder of several files gets ``manifest.json`` (SHA-256 and size of each file), written last;
readers call :func:`verify_folder` before they trust what is there.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from src import paths
from src.system.errors import ProjectError
from src.system.locks import taking_turns
from src.system.log import get_logger

MANIFEST = "manifest.json"
_CHUNK_BYTES = 1 << 20
_FULL = (errno.ENOSPC, errno.EDQUOT)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)


class IntegrityError(ProjectError):
    """A file is missing, extra or not the bytes its manifest names."""


class WriteError(ProjectError):
    """The disk is full, or the user may not write there."""


class DiskFull(WriteError):
    """The disk is full."""


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes as 64 hex digits, read in 1 MiB pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary name next to ``path``; on success it durably becomes ``path``.

    If the block raises, the temporary file is removed and ``path`` is as it was. A killed process
    leaves it behind: see :func:`clear_leftovers`. A full disk, or one the user may not write to, is
    a :class:`WriteError`.
    """
    temporary = path.parent / f".{path.name}.{uuid.uuid4().hex}.tmp"
    with _saying_what_to_do(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            _fsync(temporary)
            temporary.replace(path)
            _fsync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def _saying_what_to_do(path: Path) -> Iterator[None]:
    """Turn what a person can mend of ``path``'s disk into one line; other errors pass."""
    try:
        yield
    except OSError as error:
        place = Path(str(error.filename or path))
        if error.errno in _FULL:
            raise DiskFull(f"disk full: writing {path}; free some space, run again") from error
        ours = (path.parent, paths.CACHE)
        if error.errno in _FORBIDDEN and any(place.is_relative_to(folder) for folder in ours):
            raise WriteError(
                f"permission denied: {place}; allow your user to write in {place.parent}"
            ) from error
        raise


def clear_leftovers(path: Path) -> None:
    """Remove what killed writers of ``path`` left next to it; for its only writer."""
    for temporary in path.parent.glob(f".{path.name}.*.tmp"):
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes) -> None:
    """Durably write ``data`` to ``path``."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: Path, value: Any) -> None:
    """Durably write ``value`` as indented JSON with sorted keys; NaN and infinity are refused."""
    text = json.dumps(value, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False)
    write_bytes(path, (text + "\n").encode())


def read_json(path: Path) -> Any:
    """Read JSON; a missing or torn file is a :class:`ProjectError` that names it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ProjectError(f"file not found: {path}; run the stage that writes it") from error
    except ValueError as error:
        raise ProjectError(f"not valid JSON: {path} ({error}); run its stage again") from error


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder next to ``path``; on success it gets a manifest and becomes ``path``.

    If the block raises, the folder is removed and ``path`` is untouched. What a killed process left
    is removed by the next one that writes ``path``. Two at once take turns. A full disk, or one the
    user may not write to, is a :class:`WriteError`.
    """
    temporary = path.parent / f".{path.name}.tmp"
    retired = path.parent / f".{path.name}.old"
    # not next to the folder: nothing but the result is left there
    name = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:32]
    waiting = f"waiting for another process, which writes {path}"
    turn = taking_turns(
        paths.CACHE / "locks" / f"{name}.lock", waiting=waiting, log=get_logger(path.name)
    )
    with _saying_what_to_do(path), turn:
        path.parent.mkdir(parents=True, exist_ok=True)
        _settle(path, temporary, retired)  # what a killed process left
        temporary.mkdir()
        try:
            yield temporary
            write_manifest(temporary)
            if path.exists():
                path.replace(retired)
            temporary.replace(path)
            _fsync(path.parent)
        finally:
            _settle(path, temporary, retired)


def _settle(path: Path, temporary: Path, retired: Path) -> None:
    if retired.exists() and not path.exists():
        retired.replace(path)
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.rmtree(retired, ignore_errors=True)


def write_manifest(folder: Path) -> None:
    """Fsync every file below ``folder`` and write their SHA-256 and sizes to ``manifest.json``."""
    files = _files_below(folder)
    for file in files:
        _fsync(file)
    entries = {
        file.relative_to(folder).as_posix(): {
            "bytes": file.stat().st_size,
            "sha256": sha256_file(file),
        }
        for file in files
    }
    write_json(folder / MANIFEST, {"files": entries})


def verify_folder(folder: Path) -> dict[str, str]:
    """Check every file of ``folder`` against its manifest; return relative path → SHA-256.

    Raises
    ------
    IntegrityError
        The manifest is missing or damaged, or a file is missing, extra, or has other bytes than it
        names.
    """
    entries = _read_manifest(folder / MANIFEST)
    present = {file.relative_to(folder).as_posix() for file in _files_below(folder)}
    for odd in sorted(present.symmetric_difference(entries)):
        state = "not in the manifest" if odd in present else "missing"
        raise IntegrityError(f"file {state}: {folder / odd}; run the stage that writes it again")
    for name, sha256 in entries.items():
        if sha256_file(folder / name) != sha256:
            raise IntegrityError(
                f"sha256 mismatch: {folder / name} is not the file its manifest names; "
                "run the stage that writes it again"
            )
    return entries


def _read_manifest(manifest: Path) -> dict[str, str]:
    """Relative path → SHA-256."""
    if not manifest.is_file():
        raise IntegrityError(f"manifest missing: {manifest}; run the stage that writes it")
    try:
        return {name: str(entry["sha256"]) for name, entry in read_json(manifest)["files"].items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise IntegrityError(
            f"manifest damaged: {manifest}; run the stage that writes it again"
        ) from error


def verify_file(path: Path) -> str:
    """Check one file of a folder against the folder's manifest; return its SHA-256.

    What was verified is not hashed again in this process while the file stays as it is.

    Raises
    ------
    IntegrityError
        The manifest is missing, damaged or doesn't name the file, or the file has other bytes.
    """
    expected = _read_manifest(path.parent / MANIFEST).get(path.name)
    if expected is None:
        raise IntegrityError(
            f"file not in the manifest: {path}; run the stage that writes it again"
        )
    status = path.stat()
    if _digest_of(path, status.st_ino, status.st_size, status.st_mtime_ns) != expected:
        raise IntegrityError(
            f"sha256 mismatch: {path} is not the file its manifest names; "
            "run the stage that writes it again"
        )
    return expected


@functools.lru_cache(maxsize=64)
def _digest_of(path: Path, inode: int, n_bytes: int, changed_ns: int) -> str:  # noqa: ARG001
    return sha256_file(path)


def _files_below(folder: Path) -> list[Path]:
    return sorted(f for f in folder.rglob("*") if f.is_file() and f != folder / MANIFEST)


def _fsync(path: Path) -> None:
    """Of a file or a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
