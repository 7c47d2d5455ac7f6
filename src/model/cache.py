"""The activation cache: a folder of entries, each the activations of one split at one boundary.

An entry's name is the digest of all that its values depend on: the patches, the trunk, the type,
the software and the machine. So entries are never stale, and any run or trial whose trunk is the
same finds them.

``cache.max_gb`` bounds the folder, by the disk that its files really take. An entry in use counts
with what it was granted, and never takes more; processes see each other through a lock that every
user of an entry holds, and through the grant written beside it. Entries that nobody uses go, those
used longest ago first, when room is needed. A margin of the disk is left free for checkpoints and
results.
"""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from logging import Logger
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import DTypeLike, NDArray

from src.model.activations import FILL_LOCK, ActivationFile, Filling
from src.system.durable import WriteError, read_json, write_json
from src.system.errors import ProjectError

Identity = Mapping[str, Any]
ComputeBlock = Callable[[int, int], NDArray[np.float32]]
"""View and block number → float32 activations of the block's patches."""
Accept = Callable[[int, int, NDArray[np.float32]], None]
"""Takes view, block number and the block's activations."""

DISK_MARGIN_BYTES = 2 * 10**9
"""Disk left free for what must not fail: checkpoints (0.5 GB at most), models, the MLflow store."""

_ENTRY = "entry.json"
_LOCK = "entry.lock"
_GROWTH_BYTES = 1 << 28
_STAT_BLOCK_BYTES = 512  # of st_blocks, whatever the file system's own


class ActivationCache:
    """The folder and its bound; hands out entries and holds them until it is closed."""

    def __init__(self, folder: Path, *, max_bytes: int, log: Logger) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._log = log
        self._entries: list[Entry] = []

    def __enter__(self) -> "ActivationCache":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of every entry that was handed out."""
        for entry in self._entries:
            entry.close()
        self._entries.clear()

    def free_bytes(self, identity: Identity) -> int:
        """What the entry with this identity may take, what it takes now included; at least 0."""
        if not self._folder.is_dir():
            return max(0, min(self._max_bytes, self._disk_bytes(self._folder.parent)))
        with self._locked():
            return self._available(self._path(identity))

    def spare_bytes(self, identity: Identity) -> int:
        """As :meth:`free_bytes`, where nothing else makes room; at least 0."""
        if not self._folder.is_dir():
            return self.free_bytes(identity)
        with self._locked():
            folder = self._path(identity)
            taken = sum(_taken_bytes(f) for f in self._folders(without=folder))
            on_disk = self._disk_bytes(self._folder) + _used_bytes(folder)
            return max(0, min(self._max_bytes - taken, on_disk))

    def entry(
        self, identity: Identity, n_bytes: int, *, n: int, shape: tuple[int, ...], dtype: DTypeLike
    ) -> "Entry | None":
        """The entry with this identity, granted up to ``n_bytes``, for activations (n, …).

        Entries that nobody uses make room. An entry that is larger than the bound now allows is
        made anew, or, where ``n_bytes`` is 0, removed. None where nothing may or can be kept.
        """
        folder = self._path(identity)
        try:
            with self._locked():
                if n_bytes <= 0:
                    self._remove_if_too_large(folder)
                    return None
                folder.mkdir(exist_ok=True)
                entry = Entry(self, folder, identity, n=n, shape=shape, dtype=dtype, log=self._log)
                self._entries.append(entry)
                available = self._available(folder)
                if entry.used_bytes > available:
                    entry.clear()
                self._grant(entry, min(n_bytes, available))
        except (OSError, WriteError) as error:
            self._log.warning(
                f"activations can't be kept ({error}); they are computed in every epoch"
            )
            return None
        return entry

    def give_way(self) -> None:
        """Free the disk that activations take, as far as no other process uses them."""
        if not self._folder.is_dir():
            return
        with self._locked():
            for folder in self._unused():
                shutil.rmtree(folder, ignore_errors=True)
            for entry in self._entries:
                entry.clear()
                entry.stop_keeping()

    def extend(self, entry: "Entry", n_bytes: int) -> bool:
        """Grant ``entry`` at least ``n_bytes`` beyond what it takes; whether that was possible."""
        with self._locked():
            available = self._available(entry.folder)
            if entry.used_bytes + n_bytes > available:
                return False
            wanted = entry.used_bytes + max(n_bytes, _GROWTH_BYTES)
            self._grant(entry, min(wanted, available))
            return True

    def clear_if_alone(self, entry: "Entry") -> bool:
        """Empty ``entry`` unless another process uses it; whether it is empty now."""
        with self._locked():
            return entry.clear()

    def enough_disk(self, n_bytes: int) -> bool:
        """Whether ``n_bytes`` more leave the margin free."""
        return self._disk_bytes(self._folder) >= n_bytes

    @staticmethod
    def _disk_bytes(folder: Path) -> int:
        existing = next(f for f in (folder, *folder.parents) if f.is_dir())
        return shutil.disk_usage(existing).free - DISK_MARGIN_BYTES

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Whoever opens, measures or removes entries does so alone, and briefly."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self._folder / "cache.lock"):
            yield

    def _path(self, identity: Identity) -> Path:
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        return self._folder / digest[:32]

    def _folders(self, *, without: Path | None = None) -> list[Path]:
        return [f for f in self._folder.iterdir() if f.is_dir() and f != without]

    def _unused(self, *, without: Path | None = None) -> list[Path]:
        """Entries that nobody uses, the one used longest ago first."""
        unused = [f for f in self._folders(without=without) if not _is_in_use(f)]
        return sorted(unused, key=_last_used)

    def _available(self, folder: Path) -> int:
        """What ``folder`` may take in all: of the bound, and of the disk."""
        others = self._folders(without=folder)
        in_use = {other for other in others if _is_in_use(other)}
        of_bound = self._max_bytes - sum(
            max(_used_bytes(f), _granted_bytes(f)) for f in others if f in in_use
        )
        removable = sum(_used_bytes(f) for f in [*others, folder] if f not in in_use)
        return max(0, min(of_bound, self._disk_bytes(self._folder) + removable))

    def _grant(self, entry: "Entry", n_bytes: int) -> None:
        """Write down that ``entry`` may take ``n_bytes``; unused entries make room for it."""
        folder = entry.folder
        granted = max(n_bytes, entry.used_bytes, 0 if entry.is_alone() else _granted_bytes(folder))
        self._make_room(folder, granted)
        about = {"identity": dict(entry.identity), "granted_bytes": granted}
        write_json(folder / _ENTRY, about)
        entry.granted_bytes = granted

    def _make_room(self, folder: Path, granted: int) -> None:
        unused = self._unused(without=folder)
        used = {other: _used_bytes(other) for other in unused}
        total = granted + sum(_taken_bytes(f) for f in self._folders(without=folder))
        growth = granted - _used_bytes(folder)
        for other in unused:
            if total <= self._max_bytes and self.enough_disk(growth):
                return
            self._log.debug(f"removes activations used longest ago: {other.name}")
            shutil.rmtree(other, ignore_errors=True)
            total -= used[other]

    def _remove_if_too_large(self, folder: Path) -> None:
        if (
            folder.is_dir()
            and _used_bytes(folder) > self._available(folder)
            and not _is_in_use(folder)
        ):
            shutil.rmtree(folder, ignore_errors=True)


class Entry:
    """One split's activations at one boundary, held: nobody removes them until it is closed.

    Made by :meth:`ActivationCache.entry` alone, under the cache's lock. It keeps no more than it
    was granted. What other runs left in it (other views of the same patches) is room for this one:
    where it would have to outgrow the bound, it starts anew once.

    Attributes
    ----------
    granted_bytes : disk it may take
    """

    def __init__(
        self,
        cache: ActivationCache,
        folder: Path,
        identity: Identity,
        *,
        n: int,
        shape: tuple[int, ...],
        dtype: DTypeLike,
        log: Logger,
    ) -> None:
        self.folder = folder
        self.identity = identity
        self.granted_bytes = 0
        self._cache = cache
        self._kind: dict[str, Any] = {"n": n, "shape": shape, "dtype": dtype}
        self._log = log
        self._lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        fcntl.flock(self._lock, fcntl.LOCK_SH)
        self._files: dict[int, ActivationFile] = {}
        self._keeps = True
        self._may_start_anew = self.used_bytes > 0  # something of other runs is there

    @property
    def used_bytes(self) -> int:
        """Disk that the entry takes."""
        return _used_bytes(self.folder)

    def missing(self, view: int, blocks: list[int]) -> list[int]:
        """Those of ``blocks`` that are not whole on disk and may still be put there, in order."""
        return self._file(view).missing(blocks) if self._keeps else []

    def has(self, view: int, positions: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of ``positions`` (k,) can be read."""
        if view not in self._files:
            return np.zeros(len(positions), np.bool_)
        return self._files[view].has(positions)

    def read(self, view: int, positions: NDArray[np.int64]) -> NDArray[np.generic]:
        """Rows ``positions`` (k,) → (k, …); only for those :meth:`has` speaks for."""
        return self._files[view].read(positions)

    def fill(
        self,
        wanted: Mapping[int, list[int]],
        compute: ComputeBlock,
        *,
        advance: Callable[[int], None],
    ) -> None:
        """Compute and keep what is missing of the ``wanted`` blocks of each view, while room is.

        Raises
        ------
        ActivationsOverflow
            A value does not fit the type.
        """
        try:
            for view, blocks in wanted.items() if self._keeps else ():
                whole = self._file(view).ensure(
                    blocks,
                    partial(compute, view),
                    may_grow=self._may_grow,
                    advance=advance,
                    log=self._log,
                )
                if not whole and self._may_start_anew and self._cache.clear_if_alone(self):
                    return self.fill(wanted, compute, advance=advance)
                if not whole:
                    return self._stop("the disk that activations may take is used up")
        except (OSError, WriteError) as error:
            self._stop(f"activations can't be kept ({error})")

    @contextmanager
    def accepting(self) -> Iterator[Accept]:
        """Yields a function that keeps a block which was computed on the way to something else.

        A present for whoever needs it next, so nothing is waited for and nothing fails: a block
        that is there, that another process computes, or that finds no room is not kept.
        """
        lock = FileLock(self.folder / FILL_LOCK)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            yield _ignore
            return
        fillings: dict[int, Filling] = {}
        try:
            yield partial(self._accept, fillings)
        finally:
            with self._harmlessly():
                for filling in fillings.values():
                    filling.save_ledger()
            lock.release()

    def _accept(
        self, fillings: dict[int, Filling], view: int, block: int, values: NDArray[np.float32]
    ) -> None:
        if not self._keeps:
            return
        with self._harmlessly():
            if view not in fillings:
                fillings[view] = Filling(self._file(view), self._may_grow)
            filling = fillings[view]
            if filling.is_whole(block):
                return
            if filling.has_room(block):
                filling.put(block, values)
            else:
                self.stop_keeping()

    @contextmanager
    def _harmlessly(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ProjectError) as error:  # a full disk, a value that doesn't fit
            self._log.debug(f"no more activations are kept in {self.folder.name}: {error}")
            self.stop_keeping()

    def mark_used(self) -> None:
        """Let the entry count as used now."""
        if (self.folder / _ENTRY).exists():
            os.utime(self.folder / _ENTRY)

    def clear(self) -> bool:
        """Give its disk back, unless another process uses it; whether it is empty now.

        Under the cache's lock.
        """
        if not self.is_alone():
            return False
        self._close_files()
        for file in self.folder.glob("view-*"):
            file.unlink(missing_ok=True)
        self._may_start_anew = False
        return True

    def is_alone(self) -> bool:
        """Whether no other process uses the entry; under the cache's lock."""
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        finally:
            fcntl.flock(self._lock, fcntl.LOCK_SH)  # a failed try may have let go of it
        return True

    def stop_keeping(self) -> None:
        """Put nothing more on disk; what is there can be read."""
        self._keeps = False

    def close(self) -> None:
        """Close the files and let others remove the entry."""
        self._close_files()
        if self._lock >= 0:
            os.close(self._lock)
        self._lock, self._keeps = -1, False

    def _close_files(self) -> None:
        for file in self._files.values():
            file.close()
        self._files.clear()

    def _file(self, view: int) -> ActivationFile:
        if view not in self._files:
            self._files[view] = ActivationFile(self.folder, view, **self._kind)
        return self._files[view]

    def _may_grow(self, n_bytes: int) -> bool:
        return self._cache.enough_disk(n_bytes) and (
            self.used_bytes + n_bytes <= self.granted_bytes or self._cache.extend(self, n_bytes)
        )

    def _stop(self, reason: str) -> None:
        self._log.warning(f"{reason}: activations not kept yet are computed in every epoch")
        self.stop_keeping()


def _ignore(view: int, block: int, values: NDArray[np.float32]) -> None:
    """Another process fills the entry."""


def _is_in_use(folder: Path) -> bool:
    """Whether any process, this one included, holds the entry; under the cache's lock."""
    try:
        lock = os.open(folder / _LOCK, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


def _used_bytes(folder: Path) -> int:
    """Disk that the activations in ``folder`` take; holes take none, ledgers and locks little."""
    return sum(f.stat().st_blocks * _STAT_BLOCK_BYTES for f in folder.glob("view-*.bin"))


def _taken_bytes(folder: Path) -> int:
    """Disk that the activations in ``folder`` take, or may take while somebody uses them."""
    used = _used_bytes(folder)
    return max(used, _granted_bytes(folder)) if _is_in_use(folder) else used


def _last_used(folder: Path) -> float:
    file = folder / _ENTRY
    return file.stat().st_mtime if file.exists() else 0.0


def _granted_bytes(folder: Path) -> int:
    try:
        return int(read_json(folder / _ENTRY)["granted_bytes"])
    except (ProjectError, KeyError, TypeError):
        return 0
