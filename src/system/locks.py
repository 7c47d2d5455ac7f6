"""Locks between the processes of one machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from logging import Logger
from pathlib import Path

from filelock import FileLock, Timeout


@contextmanager
def taking_turns(lock_file: Path, *, waiting: str, log: Logger) -> Iterator[None]:
    """Hold ``lock_file`` during the block; if another process holds it, log ``waiting`` and wait.

    The lock ends with its process, however that ends; the file stays, and means nothing by itself.
    """
    lock_file.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(lock_file)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.info(waiting)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
