"""One view of a split's activations on disk: a file filled block by block, and its ledger.

The ledger names the blocks that are safely on disk, each with the CRC-32 of its bytes; it is
written after the data is. A block that is missing, torn or damaged is simply computed again, so a
kill at any moment costs at most the last seconds of work.
"""

import os
import time
import zlib
from collections.abc import Callable, Iterable
from logging import Logger
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import DTypeLike, NDArray

from src.data.batches import VIEW_BLOCK, n_batches
from src.system.durable import read_json, write_json
from src.system.errors import ProjectError

ComputeBlock = Callable[[int], NDArray[np.float32]]
"""Block number → float32 activations of its patches, (64 or, in the last block, fewer, …)."""

FILL_LOCK = "fill.lock"
"""Of an entry's folder: one process at a time puts blocks there."""

_LEDGER_EVERY_S = 5.0


class ActivationsOverflow(ProjectError):
    """An activation is too large for the cache's type, or is not a number."""


class ActivationsLost(ProjectError):
    """A file of activations isn't what it was made as."""


class ActivationFile:
    """Activations (n, …) of one split in one view.

    Several processes may use one file: whoever fills holds the entry's lock, the others wait and
    then find the blocks there.

    Raises
    ------
    ActivationsLost
        The file there has another size: it holds something else, and may be in use.
    """

    def __init__(
        self, folder: Path, view: int, *, n: int, shape: tuple[int, ...], dtype: DTypeLike
    ) -> None:
        self._n = n
        self._shape = shape
        self._dtype = np.dtype(dtype)
        self._row_bytes = int(np.prod(shape)) * self._dtype.itemsize
        self._ledger = folder / f"view-{view}.json"
        self._opening = FileLock(folder / "open.lock")  # held briefly
        self._lock = FileLock(folder / FILL_LOCK)  # held while blocks are computed
        self._path = folder / f"view-{view}.bin"
        self._descriptor = self._open()
        self._verified = np.zeros(n_batches(n, VIEW_BLOCK), np.bool_)

    def has(self, positions: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of ``positions`` (k,) were found whole, or put there, by this process."""
        return self._verified[positions // VIEW_BLOCK]

    def read(self, positions: NDArray[np.int64]) -> NDArray[np.generic]:
        """Rows ``positions`` (k,) → (k, …); only for those :meth:`has` speaks for."""
        rows = np.empty((len(positions), self._row_bytes), np.uint8)
        for row, position in zip(rows, positions.tolist(), strict=True):
            if os.preadv(self._descriptor, [row.data], position * self._row_bytes) < len(row):
                raise ActivationsLost(
                    f"activations were cut short while in use: {self._path}; run again: what is "
                    "missing is computed anew"
                )
        return rows.view(self._dtype).reshape(len(positions), *self._shape)

    def missing(self, blocks: Iterable[int]) -> list[int]:
        """Those of ``blocks`` that are not whole on disk, in order."""
        unverified = [block for block in sorted(set(blocks)) if not self._verified[block]]
        if not unverified:
            return []
        ledger = self.read_ledger()
        for block in unverified:
            self._verified[block] = self.is_whole(block, ledger)
        return [block for block in unverified if not self._verified[block]]

    def ensure(
        self,
        blocks: Iterable[int],
        compute: ComputeBlock,
        *,
        may_grow: Callable[[int], bool],
        advance: Callable[[int], None],
        log: Logger,
    ) -> bool:
        """Compute and keep those of ``blocks`` that are not there; whether all are, in the end.

        ``may_grow`` is asked before so many bytes more are taken, and ends the filling with False;
        ``advance`` counts patches.

        Raises
        ------
        ActivationsOverflow
            A value does not fit the file's type.
        OSError
            The disk is full or fails.
        """
        wanted = self.missing(blocks)
        if not wanted:
            return True
        self._acquire(log)
        try:
            found = set(wanted)
            wanted = self.missing(wanted)
            advance(sum(self._size(block) for block in found - set(wanted)))
            with Filling(self, may_grow) as filling:
                for block in wanted:
                    if not filling.has_room(block):
                        return False
                    filling.put(block, compute(block))
                    advance(self._size(block))
            return True
        finally:
            self._lock.release()

    def close(self) -> None:
        """Give the file back."""
        os.close(self._descriptor)

    def _acquire(self, log: Logger) -> None:
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            log.info("another process computes these activations: waits for it")
            self._lock.acquire()

    def _open(self) -> int:
        n_bytes = self._n * self._row_bytes
        with self._opening:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
            found = os.fstat(descriptor).st_size
            if found == 0:
                self._ledger.unlink(missing_ok=True)
                os.ftruncate(descriptor, n_bytes)  # sparse: takes no disk yet
            elif found != n_bytes:
                os.close(descriptor)
                raise ActivationsLost(
                    f"activations of another size: {self._path} has {found:,} bytes, not "
                    f"{n_bytes:,}; delete {self._path.parent}"
                )
        return descriptor

    def write(self, block: int, values: NDArray[np.float32]) -> int:
        """Put a block in its place; the CRC-32 of its bytes."""
        data = as_stored(values, self._dtype).tobytes()
        _write_at(self._descriptor, data, block * VIEW_BLOCK * self._row_bytes)
        self._verified[block] = True
        return zlib.crc32(data)

    def n_bytes(self, block: int) -> int:
        """Bytes that a block takes; the last one may be shorter."""
        return self._size(block) * self._row_bytes

    def _size(self, block: int) -> int:
        return min(VIEW_BLOCK, self._n - block * VIEW_BLOCK)

    def is_whole(self, block: int, ledger: list[int | None]) -> bool:
        """Whether the block has the bytes that the ledger names."""
        if ledger[block] is None:
            return False
        data = os.pread(self._descriptor, self.n_bytes(block), block * VIEW_BLOCK * self._row_bytes)
        return zlib.crc32(data) == ledger[block]

    def read_ledger(self) -> list[int | None]:
        """The CRC-32 of each block on disk; None for those that are not there."""
        n_blocks = n_batches(self._n, VIEW_BLOCK)
        try:
            ledger: list[int | None] = read_json(self._ledger)["crc32"]
        except (ProjectError, KeyError, TypeError):
            return [None] * n_blocks
        return ledger if len(ledger) == n_blocks else [None] * n_blocks

    def write_ledger(self, ledger: list[int | None]) -> None:
        """Name the blocks that are on disk, once they are."""
        os.fsync(self._descriptor)
        write_json(self._ledger, {"crc32": ledger})


class Filling:
    """Puts blocks into a file: first the data, then, every few seconds, the ledger that names it.

    For whoever holds the lock :data:`FILL_LOCK` of the file's folder.
    """

    def __init__(self, file: ActivationFile, may_grow: Callable[[int], bool]) -> None:
        self._file = file
        self._may_grow = may_grow
        self._ledger = file.read_ledger()
        self._named = list(self._ledger)  # what the ledger on disk says
        self._last = time.monotonic()

    def __enter__(self) -> "Filling":
        return self

    def __exit__(self, *_: object) -> None:
        self.save_ledger()

    def has_room(self, block: int) -> bool:
        """Whether the block is on disk, be it damaged, or may be put there."""
        return self._ledger[block] is not None or self._may_grow(self._file.n_bytes(block))

    def is_whole(self, block: int) -> bool:
        """Whether the block is there as it was computed."""
        return self._file.is_whole(block, self._ledger)

    def put(self, block: int, values: NDArray[np.float32]) -> None:
        """Keep the activations of a block.

        Raises
        ------
        ActivationsOverflow
            A value does not fit the file's type.
        OSError
            The disk is full or fails.
        """
        self._ledger[block] = self._file.write(block, values)
        if time.monotonic() - self._last > _LEDGER_EVERY_S:
            self.save_ledger()

    def save_ledger(self) -> None:
        """Let the ledger on disk name what was put there."""
        if self._ledger != self._named:
            self._file.write_ledger(self._ledger)
            self._named = list(self._ledger)
        self._last = time.monotonic()


def as_stored(values: NDArray[np.float32], dtype: DTypeLike) -> NDArray[np.generic]:
    """``values`` rounded to the file's type.

    Raises
    ------
    ActivationsOverflow
        One doesn't fit, or is no number.
    """
    with np.errstate(over="ignore"):
        stored = values.astype(dtype, copy=False)
    if not np.isfinite(stored).all():
        raise ActivationsOverflow(
            f"activations up to {np.abs(values).max():.3g} don't fit {np.dtype(dtype)}; "
            "set cache.dtype: float32, or look at the weights if that is what it is"
        )
    return stored


def _write_at(descriptor: int, data: bytes, offset: int) -> None:
    # read and written, not mapped: a full disk is an error and not a crash, and what was read
    # doesn't count as memory of this process
    remaining = memoryview(data)
    while remaining:
        written = os.pwrite(descriptor, remaining, offset)
        remaining, offset = remaining[written:], offset + written
