"""Images of an archive to one packed array of pixels on disk, decoded by several processes.

Each process reads the archive itself and writes its rows at their place in the file, so pixels
never pass between processes. Neither the order of the archive nor the number of processes shows
in the result. Bytes are written, not memory-mapped: mapped pages would count as memory used.
"""

from __future__ import annotations

import errno
import io
import itertools
import multiprocessing
import os
import shutil
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from src.data.archives import IMAGE_SUFFIX, Archive, BadPatchError, Member, Reader
from src.data.images import decode_tiff, raw_patch, sha256_pixels
from src.data.measurements import Measurements, measure
from src.patch import N_BYTES, SHAPE
from src.system.errors import ProjectError
from src.system.progress import Advance

CHUNK_PATCHES = 256  # 7 MB of pixels
_MIN_PATCHES_PER_PROCESS = 1_000  # fewer are decoded sooner than a process starts
_CHUNKS_WAITING = 4  # per process
_BAD_NAMED = 3  # unreadable images that the error names

DECODERS: Mapping[str, Callable[[bytes], NDArray[np.uint8]]] = {
    "tiff": decode_tiff,
    "raw": raw_patch,
}
"""By ``Member.encoding``."""


class PackingError(ProjectError):
    """The pixels can't be written, or more images are unreadable than allowed."""


@dataclass(frozen=True)
class Chunk:
    """Consecutive patches of one subset, to be decoded into ``path`` from ``first_row`` on."""

    subset: str
    reader: Reader
    members: tuple[Member, ...]
    path: Path
    first_row: int


@dataclass(frozen=True)
class DecodedChunk:
    """What is known of a chunk once its n patches are written.

    Attributes
    ----------
    digests
        n SHA-256 of the pixels; '' where the image is unreadable.
    measured
        Of the n patches.
    bad
        Position in the chunk → why that image is unreadable.
    """

    subset: str
    first_row: int
    digests: list[str]
    measured: Measurements
    bad: dict[int, str]


@dataclass
class PackedSubset:
    """One subset's pixels on disk and what was measured on the way.

    Attributes
    ----------
    ids
        In the order given.
    rows
        (n,) int64, each patch's row in the file; −1 for unreadable images, which have none.
    digests, parts
        As in :class:`DecodedChunk`: one digest per patch, one part per chunk.
    bad
        Id → why the image is unreadable.
    """

    ids: Sequence[str]
    path: Path
    rows: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    digests: list[str] = field(default_factory=list)
    parts: list[Measurements] = field(default_factory=list)
    bad: dict[str, str] = field(default_factory=dict)

    @property
    def measured(self) -> Measurements:
        """Of all patches, unreadable ones included."""
        return Measurements.joined(self.parts)


def pack_archive(
    archive: Archive,
    ids_of: dict[str, list[str]],
    folder: Path,
    *,
    max_bad: int,
    workers: int,
    advance: Advance,
) -> dict[str, PackedSubset]:
    """Decode every image of ``ids_of`` (subset → ids) into ``folder/<subset>.npy``.

    Rows follow the order of the ids; unreadable images get none.

    Parameters
    ----------
    max_bad
        Unreadable images allowed in all subsets together.
    workers
        Processes; 0 = one per core.
    advance
        Called with the number of patches done since the last call.

    Raises
    ------
    PackingError
        More than ``max_bad`` images are unreadable, or the disk is full.
    ArchiveError
        The archive itself turns out to be damaged.
    """
    n_patches = sum(len(ids) for ids in ids_of.values())
    needed, free = n_patches * N_BYTES, shutil.disk_usage(folder).free
    if needed > free:
        raise PackingError(
            f"disk full: {needed / 1e9:,.1f} GB needed in {folder.parent}, "
            f"{free / 1e9:,.1f} GB free; free some space"
        )
    packed = {subset: PackedSubset(ids, folder / f"{subset}.npy") for subset, ids in ids_of.items()}
    for subset in packed.values():
        header = _header(len(subset.ids))
        with subset.path.open("wb") as file:
            file.write(header)
            file.truncate(len(header) + len(subset.ids) * N_BYTES)
    chunks = itertools.chain.from_iterable(
        _chunks(archive, name, subset) for name, subset in packed.items()
    )
    for decoded in _decode_all(chunks, _n_processes(workers, n_patches)):
        subset = packed[decoded.subset]
        subset.digests += decoded.digests
        subset.parts.append(decoded.measured)
        for position, reason in decoded.bad.items():
            subset.bad[subset.ids[decoded.first_row + position]] = reason
        advance(len(decoded.digests))
    _check_bad(packed, max_bad)  # at the end: the person is told of all of them at once
    for subset in packed.values():
        subset.rows = _close_gaps(subset)
    return packed


def decode_chunk(chunk: Chunk) -> DecodedChunk:
    """Read, decode, hash, measure and write the patches of one chunk."""
    n = len(chunk.members)
    pixels = np.zeros((n, *SHAPE), np.uint8)
    digests, bad = [""] * n, {}
    with chunk.reader.open() as read:
        for i, member in enumerate(chunk.members):
            try:
                pixels[i] = DECODERS[member.encoding](read(member))
            except BadPatchError as error:
                bad[i] = str(error)
                continue
            digests[i] = sha256_pixels(pixels[i])
    readable = np.array([bool(digest) for digest in digests], dtype=np.bool_)
    _write_rows(chunk.path, chunk.first_row, pixels)
    return DecodedChunk(chunk.subset, chunk.first_row, digests, measure(pixels, readable), bad)


def _chunks(archive: Archive, name: str, subset: PackedSubset) -> Iterator[Chunk]:
    for first in range(0, len(subset.ids), CHUNK_PATCHES):
        names = (f"{name}/{i}{IMAGE_SUFFIX}" for i in subset.ids[first : first + CHUNK_PATCHES])
        members = tuple(member for member in map(archive.member, names) if member is not None)
        yield Chunk(name, archive.reader, members, subset.path, first)


def _n_processes(workers: int, n_patches: int) -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(workers or cores or 1, n_patches // _MIN_PATCHES_PER_PROCESS))


def _decode_all(chunks: Iterator[Chunk], n_processes: int) -> Iterator[DecodedChunk]:
    """The decoded chunks in the order of ``chunks``."""
    if n_processes == 1:
        yield from map(decode_chunk, chunks)
        return
    pool = ProcessPoolExecutor(
        n_processes, multiprocessing.get_context("spawn"), initializer=_end_with_parent
    )
    waiting: deque[Future[DecodedChunk]] = deque()
    try:
        for chunk in chunks:
            # Ctrl-C goes to all processes of a terminal, but the parent ends the work: submitting
            # starts processes, and they inherit what is blocked here
            before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
            try:
                waiting.append(pool.submit(decode_chunk, chunk))
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
            if len(waiting) > _CHUNKS_WAITING * n_processes:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise PackingError(
            "a decoding process was killed, perhaps for lack of memory; "
            "run again, with fewer runtime.workers if it happens again"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """In a decoding process: end when the parent does, which if killed can't say so."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _check_bad(packed: dict[str, PackedSubset], max_bad: int) -> None:
    bad = [
        f"{name}/{patch_id}{IMAGE_SUFFIX}: {reason}"
        for name, subset in packed.items()
        for patch_id, reason in subset.bad.items()
    ]
    if len(bad) > max_bad:
        images = f"{len(bad):,} unreadable image{'s' if len(bad) > 1 else ''}"
        more = ", …" if len(bad) > _BAD_NAMED else ""
        raise PackingError(
            f"{images}, {max_bad:,} allowed: {', '.join(bad[:_BAD_NAMED])}{more}; fetch the "
            f"archive again, or set ingest.max_bad: {len(bad)} to quarantine them"
        )


def _close_gaps(subset: PackedSubset) -> NDArray[np.int64]:
    """Move later patches up over the rows of unreadable images; return each patch's row or −1."""
    kept = np.array([bool(digest) for digest in subset.digests], dtype=np.bool_)
    rows = np.where(kept, np.cumsum(kept) - 1, -1)
    if not kept.all():
        with subset.path.open("r+b") as file:
            start = len(_header(len(kept)))
            for old in np.flatnonzero(kept & (rows != np.arange(len(rows)))):
                pixels = os.pread(file.fileno(), N_BYTES, start + int(old) * N_BYTES)
                os.pwrite(file.fileno(), pixels, start + int(rows[old]) * N_BYTES)
            file.write(_header(int(kept.sum())))
            file.truncate(start + int(kept.sum()) * N_BYTES)
    return rows.astype(np.int64)


def _header(n: int) -> bytes:
    # numpy leaves room for the first dimension to grow: as long for any n
    buffer = io.BytesIO()
    description = {"descr": "|u1", "fortran_order": False, "shape": (n, *SHAPE)}
    np.lib.format.write_array_header_1_0(buffer, description)
    return buffer.getvalue()


def _write_rows(path: Path, first_row: int, pixels: NDArray[np.uint8]) -> None:
    data = pixels.data.cast("B")
    try:
        with path.open("r+b", buffering=0) as file:
            file.seek(len(_header(0)) + first_row * N_BYTES)
            while data:  # an unbuffered write may take less than it is given
                data = data[file.write(data) :]
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise PackingError(f"disk full: writing {path}; free some space") from error
        raise
