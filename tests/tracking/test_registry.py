"""Versions: whole, verified before they are loaded or promoted, not piled up."""

import json
import shutil
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest

from src.system.durable import MANIFEST, sha256_file, write_manifest
from src.tracking import registry, runs
from src.tracking.logged_models import VerificationError
from src.tracking.store import TrackingError
from tests.tracking.support import (
    final_folder,
    patches,
    point_paths_at,
    record,
)

pytest_plugins = ("tests.tracking.fixtures",)
pytestmark = pytest.mark.tensorflow

EVIDENCE = {"auroc": 0.91234, "baseline_auroc": 0.8, "final_weights_sha256": "b" * 64}
IDS = ["a" * 40, "b" * 40]


@pytest.fixture
def final(tmp_path, keras_file):
    return final_folder(tmp_path / "final", keras_file, IDS, ["c" * 64], ["a slide", "another"])


@pytest.fixture
def run_id(store):  # noqa: ARG001
    with runs.training_run(record()) as run:
        return run.run_id


@pytest.fixture
def version(final, run_id, model_name):
    return registry.register_version(final, name=model_name, run_id=run_id, evidence=EVIDENCE)


def folder_of(store, name, version) -> Path:
    uri = store.client.get_model_version_download_uri(name, str(version))
    return Path(unquote(uri.removeprefix("file://")))


def test_version_alone_gives_all_that_predicting_needs(
    final, run_id, version, model_name, keras_file
):
    import keras

    files = registry.load_version(model_name, version)
    assert files.seen_ids == frozenset(IDS)
    assert files.seen_sha256 == {"c" * 64}
    assert files.seen_slides == {"a slide", "another"}  # a name may hold a space
    assert files.operating_point["threshold"] == 0.4
    assert files.evidence == EVIDENCE
    assert files.run_id == run_id
    assert files.model_sha256 == sha256_file(final / "model.keras")
    expected = keras.saving.load_model(keras_file).predict(patches(3), verbose=0)
    np.testing.assert_array_equal(files.model.predict(patches(3), verbose=0), expected)


def test_version_names_its_evidence_in_tags(store, run_id, version, model_name):
    entry = store.client.get_model_version(model_name, str(version))
    assert (entry.tags["auroc"], entry.tags["baseline_auroc"]) == ("0.9123", "0.8000")
    assert entry.tags["run_id"] == entry.run_id == run_id
    folder = folder_of(store, model_name, version)
    assert entry.tags["manifest_sha256"] == sha256_file(folder / MANIFEST)


def test_identical_model_is_not_registered_twice(final, run_id, version, model_name):
    again = registry.register_version(final, name=model_name, run_id=run_id, evidence=EVIDENCE)
    assert again == version


def test_other_run_or_other_files_make_a_new_version(final, version, model_name):
    with runs.training_run(record()) as other:
        pass
    second = registry.register_version(
        final, name=model_name, run_id=other.run_id, evidence=EVIDENCE
    )
    (final / "seen_ids.txt").write_text("c" * 40 + "\n")
    write_manifest(final)
    third = registry.register_version(
        final, name=model_name, run_id=other.run_id, evidence=EVIDENCE
    )
    assert (version, second, third) == (1, 2, 3)


def test_damaged_version_is_registered_anew(store, final, run_id, version, model_name):
    """mlruns/ deleted, mlflow.db kept: reusing the version would leave nothing to load."""
    shutil.rmtree(folder_of(store, model_name, version))
    again = registry.register_version(final, name=model_name, run_id=run_id, evidence=EVIDENCE)
    assert again == version + 1
    registry.verify_version(model_name, again)


def test_remote_files_are_fetched_once_and_never_taken_from_under_a_reader(
    version, model_name, store, tmp_path, monkeypatch
):
    """Every check deleted and fetched the one copy: two processes did it to each other."""
    import mlflow.artifacts

    entry = store.client.get_model_version(model_name, str(version))
    remote, fetched = folder_of(store, model_name, version), []
    copies = registry.paths.CACHE / "registry" / model_name

    def download(*, artifact_uri, dst_path, tracking_uri):  # noqa: ARG001
        fetched.append([folder.name for folder in copies.glob("1-*")])
        return str(shutil.copytree(remote, Path(dst_path) / "model"))

    monkeypatch.setattr(mlflow.artifacts, "download_artifacts", download)
    monkeypatch.setattr(registry.paths, "CACHE", tmp_path)
    copies = tmp_path / "registry" / model_name
    folder = registry._copy_of(entry, "mlflow-artifacts:/x", store)
    assert registry._copy_of(entry, "mlflow-artifacts:/x", store) == folder
    assert fetched == [[]]
    truncate(folder)
    again = registry._copy_of(entry, "mlflow-artifacts:/x", store)
    assert fetched == [[], [folder.name]]  # the old copy stood until the new one was whole
    registry.load_version(model_name, version, folder=again)
    assert [path.name for path in copies.iterdir()] == [folder.name]


def test_aliases_start_empty_and_move(model_name, version):
    assert registry.champion_version(model_name) is None
    registry.set_alias(model_name, registry.CHAMPION, version)
    assert registry.aliases(model_name) == {"champion": version}


def test_unknown_model_has_no_champion(store):  # noqa: ARG001
    assert registry.champion_version("never-registered") is None


def truncate(folder: Path) -> None:
    model = folder / "data/model.keras"
    model.write_bytes(model.read_bytes()[:-100])


def swap_weights(folder: Path) -> None:
    (folder / "data/model.keras").write_bytes((folder / "evidence/evidence.json").read_bytes())


def swap_weights_and_manifest(folder: Path) -> None:
    swap_weights(folder)
    write_manifest(folder)


def foreign_loader(folder: Path) -> None:
    mlmodel = folder / "MLmodel"
    mlmodel.write_text(mlmodel.read_text().replace("src.serving", "os"))


def add_code(folder: Path) -> None:
    (folder / "code").mkdir()
    (folder / "code/loader.py").write_text("print('ran')")


def drop_manifest(folder: Path) -> None:
    (folder / MANIFEST).unlink()


def drop_evidence(folder: Path) -> None:
    (folder / "evidence/seen_ids.txt").unlink()


@pytest.mark.parametrize(
    ("tamper", "core"),
    [
        (truncate, "sha256 mismatch"),
        (swap_weights, "sha256 mismatch"),
        (swap_weights_and_manifest, "is not the one that was registered"),
        (foreign_loader, "sha256 mismatch"),
        (add_code, "file not in its manifest"),
        (drop_manifest, "manifest missing"),
        (drop_evidence, "file missing"),
    ],
)
def test_tampered_version_is_neither_loaded_nor_promoted(
    store, version, model_name, tamper, core, monkeypatch
):
    tamper(folder_of(store, model_name, version))
    monkeypatch.setattr(registry, "load_keras", lambda path: pytest.fail(f"loaded {path}"))
    with pytest.raises(VerificationError, match=f"model verification failed: .*{core}"):
        registry.load_version(model_name, version)
    with pytest.raises(VerificationError, match=core):
        registry.set_alias(model_name, registry.CHAMPION, version)
    assert registry.champion_version(model_name) is None


def test_reading_by_mlflow_itself_does_not_spoil_a_version(store, version, model_name):
    """MLflow drops registered_model_meta into local folders it resolves, as `models serve` does."""
    (folder_of(store, model_name, version) / "registered_model_meta").write_text("model_name: x\n")
    registry.verify_version(model_name, version)


def test_broken_upload_leaves_no_version(store, final, run_id, model_name, monkeypatch):
    """MLflow itself calls such a model READY."""

    def broken(*_):
        raise OSError("disk full")

    connect = registry.connect

    def connect_broken():
        store = connect()
        monkeypatch.setattr(store.client, "log_model_artifacts", broken)
        return store

    monkeypatch.setattr(registry, "connect", connect_broken)
    with pytest.raises(TrackingError, match="disk full"):
        registry.register_version(final, name=model_name, run_id=run_id, evidence=EVIDENCE)
    assert store.client.search_model_versions(f"name = '{model_name}'") == []
    model_id = store.client.get_run(run_id).outputs.model_outputs
    assert model_id == []


def test_upload_that_loses_a_file_is_not_accepted(final, run_id, model_name, monkeypatch):
    original = registry.log_model

    def lossy(*args, **kwargs):
        model = original(*args, **kwargs)
        Path(unquote(model.location.removeprefix("file://")), "data/model.keras").unlink()
        return model

    monkeypatch.setattr(registry, "log_model", lossy)
    with pytest.raises(VerificationError, match=r"file missing: .*model\.keras"):
        registry.register_version(final, name=model_name, run_id=run_id, evidence=EVIDENCE)


def test_deleted_store_says_what_to_run(tmp_path, monkeypatch):
    point_paths_at(tmp_path, monkeypatch)
    with pytest.raises(TrackingError) as caught:
        registry.load_version("hcd", 3)
    assert str(caught.value) == (
        "registry has no version 3 of hcd (mlflow.db or mlruns/ deleted?); "
        "run: dvc repro --single-item --force register predict"
    )
    assert not (tmp_path / "mlflow.db").exists()


def test_unknown_version_says_what_to_run(version, model_name):
    with pytest.raises(TrackingError, match=f"no version 9 of {model_name} .*dvc repro"):
        registry.load_version(model_name, version + 8)


def test_mlflow_page_of_the_model_names_its_version(store, run_id, version, model_name):
    model_id = store.client.get_run(run_id).outputs.model_outputs[0].model_id
    tags = store.client.get_logged_model(model_id).tags
    assert json.loads(tags["mlflow.modelVersions"]) == [{"name": model_name, "version": version}]
