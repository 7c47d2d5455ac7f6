"""The state of a phase, outside DVC's outputs (DVC deletes those before a stage runs).

One file a phase in ``.cache/checkpoints``, replaced whole. It carries the identity of the work it
belongs to (parameters, data, initial weights, code, environment): the state of another work is not
used, and the log says what differs. A finished phase leaves its result there, so that it isn't
trained again when DVC, or a kill, takes its outputs away.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from logging import Logger
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from src import paths
from src.params import Params
from src.system.code import training_code_digest
from src.system.determinism import Environment
from src.system.durable import clear_leftovers, replacing
from src.system.locks import taking_turns
from src.system.nested import flatten

Arrays = dict[str, list[NDArray[Any]]]
Facts = dict[str, Any]
Identity = Mapping[str, Any]

_MOST_NAMED = 3
_CHANGES_ROUNDING = {"xla", "mixed_precision"}
_IDENTIFIES_DATA = ("content_digest", "split_sha256")


def work_key(identity: Identity) -> str:
    """SHA-256 of everything the result of a phase depends on."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def work_identity(
    params: Params,
    stage: str,
    *,
    dataset: Mapping[str, Any],
    initial_sha256: str,
    environment: Environment,
) -> dict[str, Any]:
    """All that the result of a phase depends on: where one of it differs, training starts fresh."""
    return {
        "params": recorded_params(params, stage),
        "data": {name: dataset[name] for name in _IDENTIFIES_DATA},
        "initial_weights": initial_sha256,
        "environment": dict(environment),
        "runtime": params.runtime.model_dump(include=_CHANGES_ROUNDING),
        "code": training_code_digest(),
    }


def recorded_params(params: Params, stage: str) -> dict[str, Any]:
    """Every parameter that the result of a stage depends on, its own and those of its head."""
    sections = dict.fromkeys(("split", "model", "train", stage))
    return {**params.sections(*sections), "cache": {"dtype": params.cache.dtype}}


@contextmanager
def open_checkpoint(
    stage: str, identity: Identity, *, fresh: bool, log: Logger
) -> Iterator[Checkpoint]:
    """The state of a stage in this project; ``fresh`` forgets it. Two at once take turns."""
    file = paths.CHECKPOINTS / f"{stage}.npz"
    waiting = f"another {stage} runs in this folder: waits for it"
    with taking_turns(file.with_suffix(".lock"), waiting=waiting, log=log):
        clear_leftovers(file)
        if fresh:
            file.unlink(missing_ok=True)
        yield Checkpoint(file, identity=identity, log=log)


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
