"""Registered versions of the final model, with their evidence, and the two aliases.

A version's folder holds the MLflow model and, under ``evidence/``, everything needed to judge and
use it: evidence, operating point, the patches it has seen and the golden batch. Every file is
compared with the SHA-256 recorded at registration before any of them is read.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

import mlflow.artifacts
import numpy as np
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from numpy.typing import NDArray
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from src import paths
from src.system.durable import MANIFEST, read_json, sha256_file, verify_folder, write_json
from src.system.errors import VerificationError
from src.system.log import get_logger
from src.tracking.lifecycle import log_metrics, set_tags
from src.tracking.lineage import code_version
from src.tracking.logged_models import (
    MODEL_FILE,
    WRITTEN_BY_READERS,
    LoggedModel,
    log_model,
    verified_files,
)
from src.tracking.store import TrackingError, connect, is_absent, reporting

Alias = Literal["champion", "challenger"]
Golden = tuple[NDArray[np.uint8], NDArray[np.float64]]
"""8 patches (8, 96, 96, 3) and their calibrated logits (8,), before the sigmoid.

A version that doesn't reproduce them isn't what was registered, or doesn't run here as it ran
there: other software, another processor, a swapped model with a matching manifest.
"""

CHAMPION: Alias = "champion"
CHALLENGER: Alias = "challenger"
SERVING_LOADER = "src.serve"  # what answers for a version under ``mlflow models serve``

_FINAL_MODEL_NAME = "resnet50-final"
_GOLDEN = "evidence/golden.npz"
_REGISTER = "dvc repro --single-item --force register predict"


class Version:
    """A registered version: what the registry says of it, and its files.

    Whoever asks for the content of a file gets it only if every file is as registered.

    Attributes
    ----------
    number : from 1, in order of registration
    created_ms : when, in ms since 1970
    tags : what was decided about it since, among others

    Raises
    ------
    TrackingError
        Its files are gone, or can't be fetched.
    VerificationError
        They aren't those registered.
    """

    def __init__(self, entry: ModelVersion, folder: Path | None = None) -> None:
        self.name = str(entry.name)
        self.number = int(entry.version)
        self.created_ms = int(entry.creation_timestamp)
        self.tags: dict[str, str] = dict(entry.tags)
        self._given_folder = folder

    def __str__(self) -> str:
        return f"version {self.number} of {self.name}"

    @cached_property
    def folder(self) -> Path:
        """Where its files lie, not verified: in place if on this machine, else a copy."""
        folder = self._given_folder or _folder_of(self)
        if not folder.is_dir():
            raise TrackingError(_no_version(self.name, self.number))
        return folder

    def verify(self) -> dict[str, str]:
        """Compare every file with what was registered; return path → SHA-256."""
        if "run_id" not in self.tags or "manifest_sha256" not in self.tags:
            raise VerificationError(
                f"model verification failed: {self} was not registered by this project's register "
                f"stage; run: {_REGISTER}"
            )
        return verified_files(self.folder, manifest_sha256=self.manifest_sha256)

    def file(self, name: str) -> Path:
        """A verified file of it."""
        if name not in self.verify():
            raise VerificationError(
                f"model verification failed: no {name}: it was registered by an earlier version of "
                "this project; register it again: dvc repro --force evaluate register predict"
            )
        return self.folder / name

    def _seen(self, key: str) -> frozenset[str]:
        text = self.file(f"evidence/seen_{key}.txt").read_text(encoding="utf-8")
        return frozenset(text.splitlines()) - {""}

    @property
    def run_id(self) -> str:
        """The MLflow run that fine-tuned it."""
        return self.tags["run_id"]

    @property
    def manifest_sha256(self) -> str:
        """Tells it from a version of that number in another registry."""
        return self.tags.get("manifest_sha256", "")

    @property
    def rejected(self) -> str | None:
        """Why a person rejected it; None where nobody did."""
        return self.tags.get("rejected")

    @property
    def model_file(self) -> Path:
        """``model.keras``: uint8 (n, 96, 96, 3) → probability float32 (n, 1)."""
        return self.file(MODEL_FILE)

    @property
    def model_sha256(self) -> str:
        """Of the ``.keras`` file, the same as in ``models/final``."""
        return self.verify()[MODEL_FILE]

    @cached_property
    def operating_point(self) -> Mapping[str, Any]:
        """``rule``, ``threshold``, ``scale``, ``shift``, ``tta``."""
        return dict(read_json(self.file("evidence/operating_point.json")))

    @cached_property
    def contract(self) -> Mapping[str, Any]:
        """What its input and output are."""
        return dict(read_json(self.file("evidence/contract.json")))

    @cached_property
    def evidence(self) -> Mapping[str, Any]:
        """What was known of it when it was registered."""
        return dict(read_json(self.file("evidence/evidence.json")))

    @property
    def trained_on(self) -> str:
        """Digest of the labelled patches of its archive."""
        return str(self.evidence["data"]["train"])

    @cached_property
    def seen_ids(self) -> frozenset[str]:
        """Ids of the patches it was trained on or chosen by (train and val)."""
        return self._seen("ids")

    @cached_property
    def seen_sha256(self) -> frozenset[str]:
        """SHA-256 of their pixels."""
        return self._seen("sha256")

    @cached_property
    def seen_slides(self) -> frozenset[str]:
        """Names of their slides, where the archive names any."""
        return self._seen("slides")

    @cached_property
    def golden(self) -> Golden | None:
        """Its golden batch; None where it was registered without."""
        if _GOLDEN not in self.verify():
            return None
        with np.load(self.folder / _GOLDEN, allow_pickle=False) as batch:
            return batch["patches"], batch["logits"]

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Add tags that the MLflow page of the version shows."""
        store = connect()
        with reporting(f"did not take tags of {self}"):
            for key, value in tags.items():
                store.client.set_model_version_tag(self.name, str(self.number), key, value)
        self.tags |= tags

    def add_kaggle_scores(self, scores: Mapping[str, float], *, submission_sha256: str) -> None:
        """Write ``kaggle.public_score`` and ``kaggle.private_score``, as far as they are known.

        Metrics of the run, so that runs can be sorted by them; tags of the version, which the
        listing shows.
        """
        named = {f"kaggle.{kind}_score": value for kind, value in scores.items()}
        sent = {"kaggle.submission_sha256": submission_sha256}
        store = connect()
        with reporting(f"did not take Kaggle's scores of run {self.run_id}"):
            log_metrics(store, self.run_id, named)
            set_tags(store, self.run_id, sent)
        self.set_tags({**{key: f"{value:.5g}" for key, value in named.items()}, **sent})

    def drop_tag(self, key: str) -> None:
        """Take a tag away, if it is there."""
        if self.tags.pop(key, None) is not None:
            store = connect()
            with reporting(f"did not take tag {key} from {self}"):
                store.client.delete_model_version_tag(self.name, str(self.number), key)


def register_version(
    final_folder: Path,
    *,
    name: str,
    run_id: str,
    evidence: Mapping[str, Any],
    golden: Golden | None = None,
) -> Version:
    """Register ``models/final`` as a version, verified as it arrived.

    ``evidence`` holds at least ``auroc`` and ``baseline_auroc``, both on holdout. ``golden`` is
    what the model in ``final_folder`` gives; without it none is stored.

    If a version already is this very folder of this very run, with its files intact, the newest
    such version is returned instead of a copy.

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
    for same in reversed(versions(name)):
        if (same.tags.get("final_sha256"), same.tags.get("run_id")) == (final_sha256, run_id):
            try:
                same.verify()
            except (VerificationError, TrackingError):
                get_logger("tracking").warning(
                    f"files of {same} are gone or changed: not used again"
                )
                continue
            if golden is None or same.golden is not None:
                return same
    with reporting(f"did not take a new version of {name}"):
        model = _upload(final_folder, run_id, evidence, golden)
        tags = {
            "auroc": f"{evidence['auroc']:.4f}",
            "baseline_auroc": f"{evidence['baseline_auroc']:.4f}",
            "run_id": run_id,
            "git_commit": code_version().commit,
            "final_sha256": final_sha256,
            "manifest_sha256": model.manifest_sha256,
        }
        version = Version(_create_version(name, model, run_id, tags))
    version.verify()
    return version


def _upload(
    final_folder: Path, run_id: str, evidence: Mapping[str, Any], golden: Golden | None
) -> LoggedModel:
    extras = {
        f"evidence/{file.name}": file
        for file in final_folder.iterdir()
        if file.name not in ("model.keras", MANIFEST)
    }
    extras["evidence/final_manifest.json"] = final_folder / MANIFEST
    with tempfile.TemporaryDirectory() as temporary:
        extras["evidence/evidence.json"] = Path(temporary) / "evidence.json"
        write_json(extras["evidence/evidence.json"], evidence)
        if golden is not None:
            extras[_GOLDEN] = Path(temporary) / "golden.npz"
            np.savez(extras[_GOLDEN], patches=golden[0], logits=golden[1])
        return log_model(
            connect(),
            final_folder / "model.keras",
            name=_FINAL_MODEL_NAME,
            run_id=run_id,
            extras=extras,
            serving_loader=SERVING_LOADER,
        )


def _create_version(
    name: str, model: LoggedModel, run_id: str, tags: Mapping[str, str]
) -> ModelVersion:
    client = connect().client
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    # not models:/<id>: MLflow would look that up in whatever store is its process-wide default
    entry = client.create_model_version(
        name, model.location, run_id=run_id, tags=dict(tags), model_id=model.model_id
    )
    # MLflow's page of the model names its version; only a server sees to that by itself
    shown = json.dumps([{"name": name, "version": int(entry.version)}])
    client.set_logged_model_tags(model.model_id, {"mlflow.modelVersions": shown})
    return client.get_model_version(name, entry.version)  # with its tags


def find_version(name: str, number: int, *, folder: Path | None = None) -> Version:
    """A version; ``folder`` is where its files lie already, as trustworthy as any.

    Raises
    ------
    TrackingError
        There is no such version; the line says what to run.
    """
    if is_absent():  # connecting would create an empty store and take its time
        raise TrackingError(_no_version(name, number))
    store = connect()
    with reporting("can't be searched"):
        try:
            return Version(store.client.get_model_version(name, str(number)), folder)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                raise TrackingError(_no_version(name, number)) from error
            raise


def version_in(folder: Path) -> Version:
    """The registered version whose files MLflow put into ``folder``.

    What the folder says of itself is only where to look: the SHA-256 that its files must have
    comes from the registry.

    Raises
    ------
    VerificationError
        The folder isn't a registered version's.
    TrackingError
        The registry has no such version.
    """
    try:
        said = (folder / WRITTEN_BY_READERS).read_text(encoding="utf-8")
        named = YAML(typ="safe", pure=True).load(said)
        name, number = str(named["model_name"]), int(named["model_version"])
    except (OSError, ValueError, TypeError, KeyError, YAMLError) as error:
        raise VerificationError(
            f"model verification failed: {folder} was not reached through the registry; serve it "
            'as "models:/<name>@champion"'
        ) from error
    return find_version(name, number, folder=folder)


def versions(name: str) -> list[Version]:
    """Every version, oldest first; none if no model of that name is registered."""
    if is_absent():
        return []
    store = connect()
    found: list[ModelVersion] = []
    page = None
    with reporting("can't be searched"):
        while page is None or page.token:
            page = store.client.search_model_versions(
                f"name = '{name}'", page_token=page.token if page else None
            )
            found += page
    return sorted((Version(entry) for entry in found), key=lambda version: version.number)


def aliases(name: str) -> dict[str, int]:
    """Alias → number of the version; empty if no model of that name is registered."""
    if is_absent():
        return {}
    store = connect()
    with reporting("can't be searched"):
        try:
            found: Mapping[str, str] = store.client.get_registered_model(name).aliases
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            found = {}
    return {alias: int(number) for alias, number in found.items()}


def champion_of(name: str) -> Version | None:
    """The champion, its files not yet verified; None if there is none."""
    number = aliases(name).get(CHAMPION)
    return None if number is None else find_version(name, number)


def _no_version(name: str, number: int) -> str:
    return (
        f"registry has no version {number} of {name} (mlflow.db or mlruns/ deleted?); "
        f"run: {_REGISTER}"
    )


def _folder_of(version: Version) -> Path:
    store = connect()
    with reporting(f"can't give the files of {version}"):
        location = store.client.get_model_version_download_uri(version.name, str(version.number))
        parts = urlsplit(location)
        if parts.scheme in ("", "file"):
            return Path(unquote(parts.path))
        return copy_of(version, location, store.uri)


def copy_of(version: Version, location: str, store_uri: str) -> Path:
    """A copy of a version's remote files; the one that is here already if it is sound.

    It appears as a whole, and is never written again in place: another process may be reading it.
    """
    name = f"{version.number}-{version.manifest_sha256[:16]}"
    folder: Path = paths.CACHE / "registry" / version.name / name
    with suppress(VerificationError):
        verified_files(folder, manifest_sha256=version.manifest_sha256)
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        new, old = Path(temporary) / "new", Path(temporary) / "old"
        new.mkdir()
        fetched = mlflow.artifacts.download_artifacts(
            artifact_uri=location, dst_path=str(new), tracking_uri=store_uri
        )
        with suppress(OSError):  # there is none, or another process has just moved it
            folder.rename(old)
        with suppress(OSError):  # another process has just put its own there
            Path(fetched).rename(folder)
    return folder
