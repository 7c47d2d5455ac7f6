"""Registered versions of the final model, with their evidence, and the two aliases.

A version's folder holds the MLflow model and, under ``evidence/``, everything needed to judge and
use it. Every file is compared with the SHA-256 recorded at registration before it is read.
"""

import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import unquote, urlsplit

from src import paths
from src.system.durable import MANIFEST, read_json, sha256_file, verify_folder, write_json
from src.system.log import get_logger
from src.tracking.lineage import code_version
from src.tracking.logged_models import (
    MODEL_FILE,
    LoggedModel,
    VerificationError,
    load_keras,
    log_model,
    verified_files,
)
from src.tracking.store import Store, TrackingError, connect, is_absent, reporting

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

Alias = Literal["champion", "challenger"]

CHAMPION: Alias = "champion"
CHALLENGER: Alias = "challenger"

FINAL_MODEL_NAME = "resnet50-final"
_OPERATING_POINT = "evidence/operating_point.json"
_TRAINING_IDS = "evidence/training_ids.txt"
_EVIDENCE = "evidence/evidence.json"
_FINAL_MANIFEST = "evidence/final_manifest.json"


@dataclass(frozen=True)
class VersionFiles:
    """A version whose files were verified and whose model was loaded.

    Attributes
    ----------
    folder : where the verified files lie
    model : ``keras.Model``, uint8 (n, 96, 96, 3) → probability float32 (n, 1)
    operating_point : ``rule``, ``threshold``, ``temperature``
    training_ids : ids of the patches it was trained on
    evidence : what was known of it when it was registered
    model_sha256 : of the ``.keras`` file, the same as in ``models/final``
    """

    name: str
    version: int
    run_id: str
    folder: Path
    model: Any
    operating_point: Mapping[str, Any]
    training_ids: frozenset[str]
    evidence: Mapping[str, Any]
    model_sha256: str
    manifest_sha256: str


def register_version(
    final_folder: Path,
    *,
    name: str,
    run_id: str,
    evidence: Mapping[str, Any],
) -> int:
    """Register ``models/final`` as a version; return its number.

    ``evidence`` holds at least ``auroc`` and ``baseline_auroc``, both on holdout.

    Where the newest version already is this very folder of this very run, with its files intact,
    that version is returned instead of a copy of it.

    Raises
    ------
    IntegrityError
        ``final_folder`` isn't what its manifest says.
    VerificationError
        What arrived in the store isn't what was sent.
    TrackingError
        The store didn't take it.
    """
    verify_folder(final_folder)
    final_sha256 = sha256_file(final_folder / MANIFEST)
    store = connect()
    with reporting(f"did not take a new version of {name}"):
        same = _same_version(store, name, {"final_sha256": final_sha256, "run_id": run_id})
        if same is not None:
            return same
        model = _upload(store, final_folder, run_id, evidence)
        tags = {
            "auroc": f"{evidence['auroc']:.4f}",
            "baseline_auroc": f"{evidence['baseline_auroc']:.4f}",
            "run_id": run_id,
            "git_commit": code_version().commit,
            "final_sha256": final_sha256,
            "manifest_sha256": model.manifest_sha256,
        }
        version = _create_version(store, name, model, run_id, tags)
    verify_version(name, version)
    return version


def load_version(name: str, version: int) -> VersionFiles:
    """Verify every file of a version, then load its model with Keras in safe mode.

    Raises
    ------
    TrackingError
        There is no such version; the line says what to run.
    VerificationError
        ``model verification failed: …``; nothing of it was loaded.
    """
    entry, folder, files = _verified(name, version)
    return VersionFiles(
        name=name,
        version=version,
        run_id=entry.tags["run_id"],
        folder=folder,
        model=load_keras(folder / MODEL_FILE),
        operating_point=read_json(folder / _OPERATING_POINT),
        training_ids=frozenset((folder / _TRAINING_IDS).read_text().split()),
        evidence=read_json(folder / _EVIDENCE),
        model_sha256=files[MODEL_FILE],
        manifest_sha256=entry.tags["manifest_sha256"],
    )


def verify_version(name: str, version: int) -> None:
    """Raise as :func:`load_version` does, without loading the model."""
    _verified(name, version)


def aliases(name: str) -> dict[str, int]:
    """Alias → version; empty where no model of that name is registered."""
    from mlflow.exceptions import MlflowException

    store = connect()
    with reporting("can't be searched"):
        try:
            model = store.client.get_registered_model(name)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return {}
            raise
    return {alias: int(version) for alias, version in model.aliases.items()}


def champion_version(name: str) -> int | None:
    """The champion's version; None where there is none."""
    return aliases(name).get(CHAMPION)


def set_alias(name: str, alias: Alias, version: int) -> None:
    """Point an alias at a version, once its files are verified.

    Raises
    ------
    VerificationError, TrackingError
        See :func:`load_version`; the alias stays where it was.
    """
    verify_version(name, version)
    store = connect()
    with reporting(f"did not move alias {alias} of {name}"):
        store.client.set_registered_model_alias(name, alias, str(version))


def set_version_tags(name: str, version: int, tags: Mapping[str, str]) -> None:
    """Add tags that the MLflow page of a version shows."""
    store = connect()
    with reporting(f"did not take tags of {name} version {version}"):
        for key, value in tags.items():
            store.client.set_model_version_tag(name, str(version), key, value)


def _verified(name: str, version: int) -> "tuple[ModelVersion, Path, dict[str, str]]":
    entry = _entry(name, version)
    manifest_sha256 = entry.tags.get("manifest_sha256")
    if manifest_sha256 is None or "run_id" not in entry.tags:
        raise VerificationError(
            f"model verification failed: {name} version {version} was not registered by this "
            "project's register stage; run: dvc repro --single-item --force register predict"
        )
    folder = _files_of(entry)
    return entry, folder, verified_files(folder, manifest_sha256=manifest_sha256)


def _entry(name: str, version: int) -> "ModelVersion":
    if is_absent():  # connecting would create an empty store and take its time
        raise TrackingError(_no_version(name, version))
    from mlflow.exceptions import MlflowException

    store = connect()
    with reporting("can't be searched"):
        try:
            return store.client.get_model_version(name, str(version))
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                raise TrackingError(_no_version(name, version)) from error
            raise


def _no_version(name: str, version: int) -> str:
    return (
        f"registry has no version {version} of {name} (mlflow.db or mlruns/ deleted?); "
        "run: dvc repro --single-item --force register predict"
    )


def _files_of(entry: "ModelVersion") -> Path:
    """The version's folder: in place where the store is on this machine, else a fresh copy."""
    import mlflow.artifacts

    store = connect()
    with reporting(f"can't give the files of {entry.name} version {entry.version}"):
        location = store.client.get_model_version_download_uri(entry.name, entry.version)
        parts = urlsplit(location)
        if parts.scheme in ("", "file"):
            folder = Path(unquote(parts.path))
        else:
            folder = paths.CACHE / "registry" / entry.name / str(entry.version)
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            folder = Path(
                mlflow.artifacts.download_artifacts(
                    artifact_uri=location, dst_path=str(folder), tracking_uri=store.uri
                )
            )
    if not folder.is_dir():
        raise TrackingError(_no_version(entry.name, int(entry.version)))
    return folder


def _same_version(store: Store, name: str, tags: Mapping[str, str]) -> int | None:
    """The newest version's number, if it carries these tags and its files are intact."""
    versions = store.client.search_model_versions(f"name = '{name}'")
    newest = max(versions, key=lambda version: int(version.version), default=None)
    if newest is None or any(newest.tags.get(key) != value for key, value in tags.items()):
        return None
    try:
        verify_version(name, int(newest.version))
    except (VerificationError, TrackingError):
        get_logger("tracking").warning(
            f"files of {name} version {newest.version} are gone or changed: registering it anew"
        )
        return None
    return int(newest.version)


def _upload(
    store: Store, final_folder: Path, run_id: str, evidence: Mapping[str, Any]
) -> LoggedModel:
    with tempfile.TemporaryDirectory() as temporary:
        evidence_file = Path(temporary) / "evidence.json"
        write_json(evidence_file, evidence)
        extras = {
            _OPERATING_POINT: final_folder / "operating_point.json",
            _TRAINING_IDS: final_folder / "training_ids.txt",
            _FINAL_MANIFEST: final_folder / MANIFEST,
            _EVIDENCE: evidence_file,
        }
        return log_model(
            store,
            final_folder / "model.keras",
            name=FINAL_MODEL_NAME,
            run_id=run_id,
            extras=extras,
        )


def _create_version(
    store: Store, name: str, model: LoggedModel, run_id: str, tags: Mapping[str, str]
) -> int:
    from mlflow.exceptions import MlflowException

    try:
        store.client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    # not models:/<id>: MLflow would look that up in whatever store is its process-wide default
    version = store.client.create_model_version(
        name, model.location, run_id=run_id, tags=dict(tags), model_id=model.model_id
    )
    _show_in_model(store, model.model_id, name, int(version.version))
    return int(version.version)


def _show_in_model(store: Store, model_id: str, name: str, version: int) -> None:
    """Let MLflow's page of the model name its version; only a server does that by itself."""
    shown = json.dumps([{"name": name, "version": version}])
    store.client.set_logged_model_tags(model_id, {"mlflow.modelVersions": shown})
