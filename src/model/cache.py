"""The activation cache: a folder of entries, each the activations of one split at one boundary.

An entry's name is the digest of all that its values depend on: the patches, the trunk's weights and
preprocessing, the boundary, the type, the software. So entries are never stale, and any run or
trial whose trunk is the same finds them. ``cache.max_gb`` bounds the folder: entries used longest
ago go first.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from logging import Logger
from pathlib import Path
from typing import Any

from filelock import FileLock

from src.system.durable import read_json, write_json
from src.system.errors import ProjectError

_ENTRY = "entry.json"


class ActivationCache:
    """The folder and its bound; hands out entries."""

    def __init__(self, folder: Path, *, max_bytes: int, log: Logger) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._log = log
        self._in_use: dict[Path, int] = {}

    @property
    def free_bytes(self) -> int:
        """What this process may still ask for; entries of others make room."""
        return self._max_bytes - sum(self._in_use.values())

    def entry(self, identity: Mapping[str, Any], n_bytes: int) -> Path:
        """The folder of the entry with this identity, which may grow to ``n_bytes``.

        Entries that were used longest ago are removed until it fits; a process that still reads one
        of them keeps its open files.
        """
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        folder = self._folder / digest[:32]
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self._folder / "cache.lock"):
            reserved = max(n_bytes, _reserved(folder))
            self._in_use[folder] = reserved
            self._make_room(reserved, keep=set(self._in_use))
            write_json(folder / _ENTRY, {"identity": dict(identity), "reserved_bytes": reserved})
        return folder

    def _make_room(self, n_bytes: int, *, keep: set[Path]) -> None:
        others = [f for f in self._folder.iterdir() if f.is_dir() and f not in keep]
        others.sort(key=_last_used)
        total = n_bytes + sum(_reserved(f) for f in keep) + sum(map(_reserved, others))
        for folder in others:
            if total <= self._max_bytes:
                return
            total -= _reserved(folder)
            self._log.debug(f"removes activations used longest ago: {folder.name}")
            shutil.rmtree(folder, ignore_errors=True)


def mark_used(folder: Path) -> None:
    """Let the entry count as used now."""
    if (folder / _ENTRY).exists():
        os.utime(folder / _ENTRY)


def _last_used(folder: Path) -> float:
    file = folder / _ENTRY
    return file.stat().st_mtime if file.exists() else 0.0


def _reserved(folder: Path) -> int:
    try:
        return int(read_json(folder / _ENTRY)["reserved_bytes"])
    except (ProjectError, KeyError, TypeError):
        return 0
