"""A ``.keras`` file as an MLflow model: signature, pinned packages, manifest, every file verified.

MLflow calls a model READY whose upload broke off, so the folder carries ``manifest.json`` with the
SHA-256 of each file, and nothing is loaded before :func:`verified_files` has compared them.
"""

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from src.system.durable import MANIFEST, read_json, sha256_file, write_manifest
from src.system.errors import ProjectError
from src.tracking.store import Store

if TYPE_CHECKING:
    from mlflow.models import Model, ModelSignature

MODEL_FILE = "data/model.keras"  # where mlflow.keras puts it
_PACKAGES = ("tensorflow", "keras", "mlflow", "numpy")
WRITTEN_BY_READERS = "registered_model_meta"  # MLflow drops it into folders it resolves

Oddity = Literal["missing", "unlisted", "changed"]


class VerificationError(ProjectError):
    """A model's files aren't the ones that were registered."""


@dataclass(frozen=True)
class LoggedModel:
    """A model in the store: its id, where its files lie, the SHA-256 of its ``manifest.json``."""

    model_id: str
    location: str
    manifest_sha256: str


def log_model(
    store: Store,
    model_path: Path,
    *,
    name: str,
    run_id: str,
    extras: Mapping[str, Path],
    serving_loader: str | None = None,
) -> LoggedModel:
    """Upload the ``.keras`` file, byte for byte, as a model of the run.

    ``extras`` maps a path inside the model's folder to the file that goes there.
    ``serving_loader`` names the module that ``mlflow models serve`` asks for predictions; None:
    MLflow's own, which verifies nothing. If the upload breaks off, the model is marked FAILED.

    Raises
    ------
    MlflowException, OSError
        The store refused or is gone.
    """
    model = store.client.create_logged_model(store.experiment_id, name=name, source_run_id=run_id)
    try:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "model"
            _save_keras(folder, model_path, model_id=model.model_id, run_id=run_id)
            if serving_loader is not None:
                _serve_with(serving_loader, folder)
            for extra, source in extras.items():
                (folder / extra).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, folder / extra)
            write_manifest(folder)
            manifest_sha256 = sha256_file(folder / MANIFEST)
            store.client.log_model_artifacts(model.model_id, str(folder))
        _show_in_run(store, model.model_id, run_id)
        store.client.finalize_logged_model(model.model_id, "READY")
    except BaseException:
        _mark_failed(store, model.model_id)
        raise
    return LoggedModel(model.model_id, model.artifact_location, manifest_sha256)


def delete_models(store: Store, run_id: str) -> None:
    """Delete the models of a run: what a killed process uploaded in part."""
    found = store.client.search_logged_models(
        [store.experiment_id], filter_string=f"source_run_id = '{run_id}'"
    )
    for model in found:
        store.client.delete_logged_model(model.model_id)


def verified_files(folder: Path, *, manifest_sha256: str) -> dict[str, str]:
    """Check that the folder holds exactly the files registered; return path → SHA-256.

    Raises
    ------
    VerificationError
        ``model verification failed: …``, with the file and what is wrong with it.
    """
    for name, oddity in odd_files(folder, manifest_sha256=manifest_sha256):
        raise VerificationError(_failed(_said(folder / name, oddity)))
    return _entries(folder)


def odd_files(folder: Path, *, manifest_sha256: str) -> Iterator[tuple[str, Oddity]]:
    """Each file that isn't as registered, and how; of a wrong manifest that alone."""
    manifest = folder / MANIFEST
    if not manifest.is_file():
        yield MANIFEST, "missing"
        return
    if sha256_file(manifest) != manifest_sha256:
        yield MANIFEST, "changed"
        return
    entries = _entries(folder)
    files = {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}
    present = files - {MANIFEST, WRITTEN_BY_READERS}
    for odd in sorted(present.symmetric_difference(entries)):
        yield odd, "unlisted" if odd in present else "missing"
    for name in sorted(present.intersection(entries)):
        if sha256_file(folder / name) != entries[name]:
            yield name, "changed"


def _entries(folder: Path) -> dict[str, str]:
    files = read_json(folder / MANIFEST)["files"]
    return {name: str(entry["sha256"]) for name, entry in files.items()}


def _said(file: Path, oddity: Oddity) -> str:
    if file.name == MANIFEST:
        return (
            f"manifest missing: {file}"
            if oddity == "missing"
            else f"{file} is not the one that was registered"
        )
    said = {
        "missing": "file missing",
        "unlisted": "file not in its manifest",
        "changed": "sha256 mismatch",
    }
    return f"{said[oddity]}: {file}"


def _failed(reason: str) -> str:
    return (
        f"model verification failed: {reason}; restore it from a backup, or register the model "
        "again: dvc repro --single-item --force register predict"
    )


class _KerasFile:
    """Stands in for the model in ``mlflow.keras.save_model``, which only calls ``save``.

    Keras never writes the same bytes twice (there is a date inside). Copying keeps the SHA-256 of
    the pipeline's file, so that a version can be traced to it, and spares loading it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def save(self, path: str) -> None:
        shutil.copyfile(self.path, path)


def _save_keras(folder: Path, model_path: Path, *, model_id: str, run_id: str) -> None:
    import mlflow.keras

    mlflow.keras.save_model(
        _KerasFile(model_path),
        str(folder),
        mlflow_model=_description(model_id, run_id),
        signature=_signature(),
        pip_requirements=[f"{package}=={metadata.version(package)}" for package in _PACKAGES],
    )


def _serve_with(loader: str, folder: Path) -> None:
    """Let ``python_function`` be answered by a module of ours; ``mlflow.keras`` loads as before.

    The module is imported from the folder where the server starts: no code lies with the model.
    MLflow's signature can't say "pixels or a coded image", and refuses base64 before any code of
    ours sees it; so the input has none, and the module checks it.
    """
    from mlflow.models import Model, ModelSignature
    from mlflow.types import ColSpec, Schema

    description = Model.load(str(folder))
    description.flavors["python_function"]["loader_module"] = loader
    answer = Schema([ColSpec("double", "probability"), ColSpec("string", "decision")])
    description.signature = ModelSignature(outputs=answer)
    description.save(str(folder / "MLmodel"))


def _description(model_id: str, run_id: str) -> "Model":
    from mlflow.models import Model

    return Model(run_id=run_id, model_id=model_id, model_uuid=model_id)


def _signature() -> "ModelSignature":
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    patches = TensorSpec(np.dtype(np.uint8), (-1, 96, 96, 3), name="patches")
    output = TensorSpec(np.dtype(np.float32), (-1, 1), name="output")
    return ModelSignature(inputs=Schema([patches]), outputs=Schema([output]))


def _show_in_run(store: Store, model_id: str, run_id: str) -> None:
    from mlflow.entities import LoggedModelOutput

    store.client.log_outputs(run_id, [LoggedModelOutput(model_id, step=0)])


def _mark_failed(store: Store, model_id: str) -> None:
    from mlflow.exceptions import MlflowException

    with suppress(MlflowException):  # the store may be what failed; the first error is reported
        store.client.finalize_logged_model(model_id, "FAILED")


def load_keras(path: Path) -> Any:
    """Load a ``.keras`` file whose bytes were verified; code inside it is refused.

    Raises
    ------
    VerificationError
        Keras can't read it.
    """
    import keras

    try:
        return keras.saving.load_model(path, compile=False, safe_mode=True)
    except (ValueError, OSError, TypeError, KeyError) as error:
        raise VerificationError(_failed(f"Keras can't load {path}: {error}")) from error
