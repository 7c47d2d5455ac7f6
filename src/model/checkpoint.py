"""The state of a phase, outside DVC's outputs (DVC deletes those before a stage runs).

One file a phase in ``.cache/checkpoints``, replaced whole. It carries the identity of the work it
belongs to (parameters, data, initial weights, code, environment): the state of another work is not
used, and the log says what differs. A finished phase leaves its result there, so that it isn't
trained again when DVC, or a kill, takes its outputs away.
"""

import hashlib
import json
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from logging import Logger
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from src.system.durable import replacing
from src.system.nested import flatten

Arrays = dict[str, list[NDArray[Any]]]
Facts = dict[str, Any]
Identity = Mapping[str, Any]

_MOST_NAMED = 3


def work_key(identity: Identity) -> str:
    """SHA-256 of everything the result of a phase depends on."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def files_digest(*files: Path) -> str:
    """SHA-256 over names and bytes of ``files``; of a folder, its Python files."""
    digest = hashlib.sha256()
    for path in files:
        for file in sorted(path.glob("*.py")) if path.is_dir() else [path]:
            digest.update(f"{file.name}\n".encode() + file.read_bytes())
    return digest.hexdigest()


class Checkpoint:
    """Keeps the newest state of one phase."""

    def __init__(self, file: Path, *, identity: Identity, log: Logger) -> None:
        self.file = file
        self.identity = json.loads(json.dumps(identity))  # as it is read back: tuples are lists
        self.log = log

    def save(self, *, arrays: Mapping[str, Iterable[NDArray[Any]]], facts: Facts) -> None:
        """Replace the state, durably; arrays are taken one at a time, so memory holds one."""
        sizes = {}
        with replacing(self.file) as temporary, zipfile.ZipFile(temporary, "w") as archive:
            for name, group in arrays.items():
                sizes[name] = 0
                for array in group:
                    _write(archive, f"{name}/{sizes[name]}", array)
                    sizes[name] += 1
            header = {"identity": self.identity, "sizes": sizes, "facts": facts}
            _write(archive, "header", np.array(json.dumps(header)))

    def load(self) -> tuple[Arrays, Facts] | None:
        """The state of this work; None when there is none, or it belongs to another work."""
        if not self.file.exists():
            return None
        try:
            with self.file.open("rb") as file, np.load(file, allow_pickle=False) as saved:
                header = json.loads(str(saved["header"]))
                if header["identity"] != self.identity:
                    self._say_why(header["identity"])
                    return None
                arrays = {
                    name: [saved[f"{name}/{i}"] for i in range(size)]
                    for name, size in header["sizes"].items()
                }
                return arrays, header["facts"]
        except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
            self.log.warning(f"starts fresh: {self.file.name} can't be read ({error})")
            return None

    def discard(self) -> None:
        """Forget the state."""
        self.file.unlink(missing_ok=True)

    def _say_why(self, saved: Identity) -> None:
        differences = list(_differences(saved, self.identity))
        more = len(differences) - _MOST_NAMED
        named = ", ".join(differences[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
        self.log.info(f"starts fresh, since last time these changed: {named}")


def _write(archive: zipfile.ZipFile, name: str, array: NDArray[Any]) -> None:
    """One array of an ``.npz`` file."""
    with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
        np.lib.format.write_array(file, np.asanyarray(array), allow_pickle=False)


def _differences(old: Identity, new: Identity) -> Iterator[str]:
    before, after = flatten(old), flatten(new)
    for name in sorted(before.keys() | after.keys()):
        was, now = before.get(name), after.get(name)
        if was != now:
            is_digest = len(str(now)) > 30
            yield name if is_digest else f"{name} ({was} → {now})"
