"""A trained phase on disk: ``model.keras``, ``fit.json``, ``run.json`` and their manifest."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from src.model.inference import MODEL_FILE
from src.system.durable import replacing_folder, write_json

if TYPE_CHECKING:
    import keras

FIT_FILE = "fit.json"
RUN_FILE = "run.json"


def save_phase(
    folder: Path, model: "keras.Model", *, fit: Mapping[str, Any], run: Mapping[str, Any]
) -> None:
    """Write a model folder whole or not at all."""
    with replacing_folder(folder) as temporary:
        model.save(temporary / MODEL_FILE)
        write_json(temporary / FIT_FILE, dict(fit))
        write_json(temporary / RUN_FILE, dict(run))
