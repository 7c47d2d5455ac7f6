"""The state of an interrupted phase, outside DVC's outputs (DVC deletes those before a stage runs).

One file per phase in ``.cache/checkpoints``, replaced whole after every epoch. It carries the key
of the work it belongs to (digest of parameters, data, weights and code): another key means another
work, and its state is not used.
"""

import hashlib
import io
import json
import zipfile
from logging import Logger
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from src.system.durable import write_bytes

Arrays = dict[str, list[NDArray[Any]]]
Facts = dict[str, Any]


def work_key(identity: dict[str, Any], *, code: list[Path]) -> str:
    """SHA-256 of everything the result of a phase depends on: ``identity`` and source files."""
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode())
    for folder in code:
        for file in sorted(folder.glob("*.py")):
            digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()


class Checkpoint:
    """Keeps the newest state of one phase."""

    def __init__(self, file: Path, *, key: str, log: Logger) -> None:
        self.file = file
        self.key = key
        self.log = log

    def save(self, *, arrays: Arrays, facts: Facts) -> None:
        """Replace the state."""
        buffer = io.BytesIO()
        named: dict[str, Any] = {
            f"{name}/{i}": array for name, group in arrays.items() for i, array in enumerate(group)
        }
        sizes = {name: len(group) for name, group in arrays.items()}
        header = json.dumps({"key": self.key, "sizes": sizes, "facts": facts})
        np.savez(buffer, header=np.array(header), **named)
        write_bytes(self.file, buffer.getvalue())

    def load(self) -> tuple[Arrays, Facts] | None:
        """The state of this work; None when there is none, or it belongs to another work."""
        if not self.file.exists():
            return None
        try:
            with np.load(io.BytesIO(self.file.read_bytes()), allow_pickle=False) as saved:
                header = json.loads(str(saved["header"]))
                if header["key"] != self.key:
                    self.log.info("starts fresh: parameters, data or code changed since last time")
                    return None
                arrays = {
                    name: [saved[f"{name}/{i}"] for i in range(size)]
                    for name, size in header["sizes"].items()
                }
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            self.log.warning(f"starts fresh: {self.file} can't be read ({error})")
            return None
        return arrays, header["facts"]

    def discard(self) -> None:
        """Forget the state; the phase is finished and its result is written."""
        self.file.unlink(missing_ok=True)
