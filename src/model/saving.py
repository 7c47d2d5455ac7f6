"""A trained phase on disk: model, ``fit.json``, ``timing.json``, ``run.json``, their manifest."""

from __future__ import annotations

import json
import re
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras

from src.model.inference import MODEL_FILE
from src.model.training import Fitted
from src.system.durable import replacing_folder, write_json

FIT_FILE = "fit.json"
TIMING_FILE = "timing.json"
RUN_FILE = "run.json"

_CONFIG = "config.json"
_METADATA = "metadata.json"
_NO_DATE = (1980, 1, 1, 0, 0, 0)  # the earliest a zip can hold


def save_phase(
    folder: Path,
    model: keras.Model,
    fitted: Fitted,
    *,
    run: Mapping[str, Any],
) -> None:
    """Write a model folder whole or not at all."""
    with replacing_folder(folder) as temporary:
        save_model(model, temporary / MODEL_FILE)
        write_json(temporary / FIT_FILE, fitted.facts)
        write_json(temporary / TIMING_FILE, fitted.timing)
        write_json(temporary / RUN_FILE, dict(run))


def save_model(model: keras.Model, path: Path) -> None:
    """Save as ``.keras``, with the same bytes for the same model.

    Keras' date is left out, and its numbers of shared objects, which are memory addresses, become
    1, 2, … in order.
    """
    dated = path.with_name(f"dated-{path.name}")
    model.save(dated)
    with zipfile.ZipFile(dated) as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            entry = zipfile.ZipInfo(name, date_time=_NO_DATE)
            if name == _METADATA:
                metadata = {**json.loads(source.read(name)), "date_saved": ""}
                target.writestr(entry, json.dumps(metadata))
                continue
            if name == _CONFIG:
                target.writestr(entry, _renumbered(source.read(name).decode()))
                continue
            with source.open(name) as data, target.open(entry, "w", force_zip64=True) as copy:
                shutil.copyfileobj(data, copy, 1 << 20)
    dated.unlink()


def _renumbered(config: str) -> str:
    numbers: dict[str, int] = {}
    return re.sub(
        r'(?<="shared_object_id": )\d+',
        lambda found: str(numbers.setdefault(found[0], len(numbers) + 1)),
        config,
    )
