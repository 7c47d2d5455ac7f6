"""Registered versions of the final model, with their evidence, and the two aliases.

A version's folder holds the MLflow model and, under ``evidence/``, everything needed to judge and
use it: evidence, operating point, the patches it has seen and the golden batch. Every file is
compared with the SHA-256 recorded at registration before it is read.
"""

import json
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import unquote, urlsplit

from src import paths
from src.system.durable import MANIFEST, read_json, sha256_file, verify_folder, write_json
from src.system.log import get_logger
from src.tracking import golden
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
    from mlflow.entities.model_registry import ModelVersion, RegisteredModel

Alias = Literal["champion", "challenger"]

CHAMPION: Alias = "champion"
CHALLENGER: Alias = "challenger"

FINAL_MODEL_NAME = "resnet50-final"
_OPERATING_POINT = "evidence/operating_point.json"
_SEEN = {key: f"evidence/seen_{key}.txt" for key in ("ids", "sha256", "slides")}
_EVIDENCE = "evidence/evidence.json"
_CONTRACT = "evidence/contract.json"
_FINAL_MANIFEST = "evidence/final_manifest.json"
_SERVING_LOADER = "src.serving"  # what answers for a version under ``mlflow models serve``


@dataclass(frozen=True)
class VersionFiles:
    """A version whose files were verified and whose model was loaded.

    Attributes
    ----------
    folder : where the verified files lie
    model : ``keras.Model``, uint8 (n, 96, 96, 3) → probability float32 (n, 1)
    operating_point : ``rule``, ``threshold``, ``scale``, ``shift``
    contract : what its input and output are; None where it was registered without
    seen_ids : ids of the patches it was trained on or chosen by (train and val)
    seen_sha256 : of their pixels
    seen_slides : names of their slides, where the archive names any
    evidence : what was known of it when it was registered
    golden : its golden batch; None where it was registered without
    model_sha256 : of the ``.keras`` file, the same as in ``models/final``
    tags : what was decided about it since, among others
    """

    name: str
    version: int
    run_id: str
    folder: Path
    model: Any
    operating_point: Mapping[str, Any]
    contract: Mapping[str, Any] | None
    seen_ids: frozenset[str]
    seen_sha256: frozenset[str]
    seen_slides: frozenset[str]
    evidence: Mapping[str, Any]
    golden: golden.Golden | None
    model_sha256: str
    manifest_sha256: str
    tags: Mapping[str, str]


@dataclass(frozen=True)
class VersionEntry:
    """What the registry itself says of a version; its files weren't looked at."""

    version: int
    created_ms: int
    tags: Mapping[str, str]


@dataclass(frozen=True)
class VersionFolder:
    """A version before anything of it was verified."""

    version: int
    folder: Path
    tags: Mapping[str, str]


def register_version(
    final_folder: Path,
    *,
    name: str,
    run_id: str,
    evidence: Mapping[str, Any],
    golden_batch: golden.Golden | None = None,
) -> int:
    """Register ``models/final`` as a version; return its number.

    ``evidence`` holds at least ``auroc`` and ``baseline_auroc``, both on holdout.
    ``golden_batch`` is what the model in ``final_folder`` gives; without it none is stored.

    Where a version already is this very folder of this very run, with its files intact, the newest
    such version is returned instead of a copy of it.

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
        wanted = {"final_sha256": final_sha256, "run_id": run_id}
        same = _same_version(store, name, wanted, with_golden=golden_batch is not None)
        if same is not None:
            return same
        model = _upload(store, final_folder, run_id, evidence, golden_batch)
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


def version_folder(name: str, version: int) -> VersionFolder:
    """Where a version's files lie and what its tags say, neither verified.

    Raises
    ------
    TrackingError
        There is no such version; the line says what to run.
    """
    entry = _entry(name, version)
    return VersionFolder(version, _files_of(entry), dict(entry.tags))


def load_version(name: str, version: int, *, folder: Path | None = None) -> VersionFiles:
    """Verify every file of a version, then load its model with Keras in safe mode.

    ``folder`` is where the files lie already, as trustworthy as any; None: fetch them.

    Raises
    ------
    TrackingError
        There is no such version; the line says what to run.
    VerificationError
        ``model verification failed: …``; nothing of it was loaded.
    """
    entry, folder, files = _verified(name, version, folder)
    return VersionFiles(
        name=name,
        version=version,
        run_id=entry.tags["run_id"],
        folder=folder,
        model=load_keras(folder / MODEL_FILE),
        operating_point=read_json(folder / _OPERATING_POINT),
        contract=read_json(folder / _CONTRACT) if _CONTRACT in files else None,
        seen_ids=_read_seen(folder, "ids"),
        seen_sha256=_read_seen(folder, "sha256"),
        seen_slides=_read_seen(folder, "slides"),
        evidence=read_json(folder / _EVIDENCE),
        golden=golden.read_golden(folder),
        model_sha256=files[MODEL_FILE],
        manifest_sha256=entry.tags["manifest_sha256"],
        tags=dict(entry.tags),
    )


def _read_seen(folder: Path, key: str) -> frozenset[str]:
    file = folder / _SEEN[key]
    if not file.is_file():
        raise VerificationError(
            f"model verification failed: no {_SEEN[key]}: it was registered by an earlier version "
            "of this project; register it again: dvc repro --force evaluate register predict"
        )
    return frozenset(file.read_text(encoding="utf-8").splitlines()) - {""}


def verify_version(name: str, version: int) -> None:
    """Raise as :func:`load_version` does, without loading the model."""
    _verified(name, version)


def read_evidence(name: str, version: int) -> dict[str, Any]:
    """What was known of a version when it was registered, once its files are verified.

    Raises
    ------
    VerificationError, TrackingError
        See :func:`load_version`.
    """
    _, folder, _ = _verified(name, version)
    evidence: dict[str, Any] = read_json(folder / _EVIDENCE)
    return evidence


def aliases(name: str) -> dict[str, int]:
    """Alias → version; empty where no model of that name is registered."""
    model = _registered_model(name)
    if model is None:
        return {}
    return {alias: int(version) for alias, version in model.aliases.items()}


def registered_tags(name: str) -> dict[str, str]:
    """Tags of the registered model; empty where none of that name is registered."""
    model = _registered_model(name)
    return {} if model is None else dict(model.tags)


def versions(name: str) -> list[VersionEntry]:
    """Every version, oldest first; none where no model of that name is registered."""
    if is_absent():
        return []
    store = connect()
    with reporting("can't be searched"):
        found = _search_versions(store, name)
    entries = [VersionEntry(int(v.version), int(v.creation_timestamp), v.tags) for v in found]
    return sorted(entries, key=lambda entry: entry.version)


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


def drop_alias(name: str, alias: Alias) -> None:
    """Take an alias away."""
    store = connect()
    with reporting(f"did not take alias {alias} from {name}"):
        store.client.delete_registered_model_alias(name, alias)


def set_registered_tags(name: str, tags: Mapping[str, str]) -> None:
    """Add tags to the registered model itself."""
    store = connect()
    with reporting(f"did not take tags of {name}"):
        for key, value in tags.items():
            store.client.set_registered_model_tag(name, key, value)


def version_tags(name: str, version: int) -> dict[str, str]:
    """A version's tags.

    Raises
    ------
    TrackingError
        There is no such version.
    """
    return dict(_entry(name, version).tags)


def drop_version_tag(name: str, version: int, key: str) -> None:
    """Take a tag away."""
    store = connect()
    with reporting(f"did not take tag {key} from {name} version {version}"):
        store.client.delete_model_version_tag(name, str(version), key)


def set_version_tags(name: str, version: int, tags: Mapping[str, str]) -> None:
    """Add tags that the MLflow page of a version shows."""
    store = connect()
    with reporting(f"did not take tags of {name} version {version}"):
        for key, value in tags.items():
            store.client.set_model_version_tag(name, str(version), key, value)


def _verified(
    name: str, version: int, folder: Path | None = None
) -> "tuple[ModelVersion, Path, dict[str, str]]":
    entry = _entry(name, version)
    manifest_sha256 = entry.tags.get("manifest_sha256")
    if manifest_sha256 is None or "run_id" not in entry.tags:
        raise VerificationError(
            f"model verification failed: {name} version {version} was not registered by this "
            "project's register stage; run: dvc repro --single-item --force register predict"
        )
    folder = folder or _files_of(entry)
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


def _registered_model(name: str) -> "RegisteredModel | None":
    if is_absent():
        return None
    from mlflow.exceptions import MlflowException

    store = connect()
    with reporting("can't be searched"):
        try:
            return store.client.get_registered_model(name)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise


def _search_versions(store: Store, name: str) -> "list[ModelVersion]":
    found: list[ModelVersion] = []
    page = None
    while page is None or page.token:
        page = store.client.search_model_versions(
            f"name = '{name}'", page_token=page.token if page else None
        )
        found += page
    return found


def _no_version(name: str, version: int) -> str:
    return (
        f"registry has no version {version} of {name} (mlflow.db or mlruns/ deleted?); "
        "run: dvc repro --single-item --force register predict"
    )


def _files_of(entry: "ModelVersion") -> Path:
    """The version's folder: in place where the store is on this machine, else a copy."""
    store = connect()
    with reporting(f"can't give the files of {entry.name} version {entry.version}"):
        location = store.client.get_model_version_download_uri(entry.name, entry.version)
        parts = urlsplit(location)
        if parts.scheme in ("", "file"):
            folder = Path(unquote(parts.path))
        else:
            folder = _copy_of(entry, location, store)
    if not folder.is_dir():
        raise TrackingError(_no_version(entry.name, int(entry.version)))
    return folder


def _copy_of(entry: "ModelVersion", location: str, store: Store) -> Path:
    """A copy of a version's files; the one that is here already where it is what was registered.

    It appears as a whole, and is never written again in place: another process may be reading it.
    """
    import mlflow.artifacts

    manifest_sha256 = str(entry.tags.get("manifest_sha256"))
    name = f"{entry.version}-{manifest_sha256[:16]}"
    folder: Path = paths.CACHE / "registry" / str(entry.name) / name
    with suppress(VerificationError):
        verified_files(folder, manifest_sha256=manifest_sha256)
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        new, old = Path(temporary) / "new", Path(temporary) / "old"
        new.mkdir()
        fetched = mlflow.artifacts.download_artifacts(
            artifact_uri=location, dst_path=str(new), tracking_uri=store.uri
        )
        with suppress(OSError):  # there is none, or another process has just moved it
            folder.rename(old)
        with suppress(OSError):  # another process has just put its own there
            Path(fetched).rename(folder)
    return folder


def _same_version(
    store: Store, name: str, tags: Mapping[str, str], *, with_golden: bool
) -> int | None:
    """The newest version that carries these tags and whose files are intact; None if none."""
    found = [
        int(version.version)
        for version in _search_versions(store, name)
        if all(version.tags.get(key) == value for key, value in tags.items())
    ]
    for version in sorted(found, reverse=True):
        try:
            _, _, files = _verified(name, version)
        except (VerificationError, TrackingError):
            get_logger("tracking").warning(
                f"files of {name} version {version} are gone or changed: not used again"
            )
            continue
        if not with_golden or golden.LOGITS_FILE in files:
            return version
    return None


def _upload(
    store: Store,
    final_folder: Path,
    run_id: str,
    evidence: Mapping[str, Any],
    golden_batch: golden.Golden | None,
) -> LoggedModel:
    with tempfile.TemporaryDirectory() as temporary:
        evidence_file = Path(temporary) / "evidence.json"
        write_json(evidence_file, evidence)
        extras = {
            _OPERATING_POINT: final_folder / "operating_point.json",
            **{path: final_folder / Path(path).name for path in _SEEN.values()},
            _FINAL_MANIFEST: final_folder / MANIFEST,
            _EVIDENCE: evidence_file,
        }
        if (final_folder / "contract.json").is_file():
            extras[_CONTRACT] = final_folder / "contract.json"
        if golden_batch is not None:
            extras |= golden.write_golden(Path(temporary), golden_batch)
        return log_model(
            store,
            final_folder / "model.keras",
            name=FINAL_MODEL_NAME,
            run_id=run_id,
            extras=extras,
            serving_loader=_SERVING_LOADER,
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
