"""A ``.keras`` file as an MLflow model: signature, pinned packages, manifest, every file verified.

MLflow calls a model READY whose upload broke off, so the folder carries ``manifest.json`` with the
SHA-256 of each file, and nothing is loaded before :func:`verified_files` has compared them.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from pathlib import Path

import numpy as np
from mlflow.entities import LoggedModelOutput
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.types import ColSpec, Schema, TensorSpec

from src.system.durable import MANIFEST, read_json, sha256_file, write_manifest
from src.system.errors import VerificationError
from src.tracking.store import Store

MODEL_FILE = "data/model.keras"  # where mlflow.keras puts it
WRITTEN_BY_READERS = "registered_model_meta"  # MLflow drops it into folders it resolves
_PACKAGES = ("tensorflow", "keras", "mlflow", "numpy")


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
        store.client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
        store.client.finalize_logged_model(model.model_id, "READY")
    except BaseException:
        with suppress(MlflowException):  # the store may be what failed; the first error is reported
            store.client.finalize_logged_model(model.model_id, "FAILED")
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

    Files are hashed once per process, and again only if one of them was touched since.

    Raises
    ------
    VerificationError
        ``model verification failed: …``, with the file and what is wrong with it.
    """
    statuses = {
        file.relative_to(folder).as_posix(): file.stat()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name != WRITTEN_BY_READERS
    }
    stamps = tuple((name, s.st_ino, s.st_size, s.st_mtime_ns) for name, s in statuses.items())
    return dict(_hashed_files(folder, manifest_sha256, stamps))


@lru_cache(maxsize=64)
def _hashed_files(
    folder: Path, manifest_sha256: str, stamps: tuple[tuple[str, int, int, int], ...]
) -> Mapping[str, str]:
    present = {name for name, *_ in stamps}
    if MANIFEST not in present:
        raise _failed(f"manifest missing: {folder / MANIFEST}")
    if sha256_file(folder / MANIFEST) != manifest_sha256:
        raise _failed(f"{folder / MANIFEST} is not the one that was registered")
    listed = read_json(folder / MANIFEST)["files"]
    for odd in sorted((present - {MANIFEST}).symmetric_difference(listed)):
        what = "file not in its manifest" if odd in present else "file missing"
        raise _failed(f"{what}: {folder / odd}")
    files = {name: str(entry["sha256"]) for name, entry in listed.items()}
    for name, sha256 in files.items():
        if sha256_file(folder / name) != sha256:
            raise _failed(f"sha256 mismatch: {folder / name}")
    return files


def _failed(reason: str) -> VerificationError:
    return VerificationError(
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
    import mlflow.keras  # imports TensorFlow, which the other users of this room do without

    patches = TensorSpec(np.dtype(np.uint8), (-1, 96, 96, 3), name="patches")
    output = TensorSpec(np.dtype(np.float32), (-1, 1), name="output")
    mlflow.keras.save_model(
        _KerasFile(model_path),
        str(folder),
        mlflow_model=Model(run_id=run_id, model_id=model_id, model_uuid=model_id),
        signature=ModelSignature(inputs=Schema([patches]), outputs=Schema([output])),
        # named, because MLflow would load the model to find out, which takes 20 s
        pip_requirements=[f"{package}=={metadata.version(package)}" for package in _PACKAGES],
    )


def _serve_with(loader: str, folder: Path) -> None:
    """Let ``python_function`` be answered by a module of ours; ``mlflow.keras`` loads as before.

    The module is imported from the folder where the server starts: no code lies with the model.
    MLflow's signature can't say "pixels or a coded image", and refuses base64 before any code of
    ours sees it; so the input has none, and the module checks it.
    """
    description = Model.load(str(folder))
    description.flavors["python_function"]["loader_module"] = loader
    answer = Schema([ColSpec("double", "probability"), ColSpec("string", "decision")])
    description.signature = ModelSignature(outputs=answer)
    description.save(str(folder / "MLmodel"))
