"""Folders of the cache that may be made again: the newest stay."""

import os
import shutil
import time
from pathlib import Path

from filelock import FileLock, Timeout

_IDLE_S = 600  # what was used since then is not deleted: somebody may be reading it


def mark_used(folder: Path) -> None:
    """Count a folder as new."""
    os.utime(folder)


def keep_newest(root: Path, n: int, *, idle_s: float = _IDLE_S) -> list[str]:
    """Delete all but the ``n`` folders of ``root`` that were used last; the names of the deleted.

    Each has its lock beside it, ``<name>.lock``; those that are held stay.
    """
    folders = sorted(
        (each for each in root.iterdir() if each.is_dir() and not each.name.startswith(".")),
        key=lambda each: each.stat().st_mtime,
        reverse=True,
    )
    old = [each for each in folders[n:] if time.time() - each.stat().st_mtime >= idle_s]
    return [each.name for each in old if _delete(each)]


def _delete(folder: Path) -> bool:
    try:
        with FileLock(folder.with_name(f"{folder.name}.lock"), timeout=0):
            shutil.rmtree(folder, ignore_errors=True)
    except Timeout:
        return False
    return True
