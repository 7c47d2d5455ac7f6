"""Versions: whole, verified before they are loaded or promoted, not piled up."""

import json
import shutil
from pathlib import Path
from urllib.parse import unquote

import mlflow.artifacts
import numpy as np
import pytest

from src.system.durable import MANIFEST, sha256_file, write_manifest
from src.system.errors import VerificationError
from src.tracking import logged_models, registry, runs
from src.tracking.promotions import set_alias
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
GOLDEN = (patches(8), np.arange(8.0))


@pytest.fixture
def final(tmp_path, keras_file):
    return final_folder(tmp_path / "final", keras_file, IDS, ["c" * 64], ["a slide", "another"])


@pytest.fixture
def run_id(store):  # noqa: ARG001
    with runs.training_run(record()) as run:
        return run.run_id


@pytest.fixture
def version(final, run_id, model_name):
    return registry.register_version(
        final, name=model_name, run_id=run_id, evidence=EVIDENCE, golden=GOLDEN
    )


def test_version_alone_gives_all_that_predicting_needs(final, run_id, version, model_name):
    files = registry.find_version(model_name, version.number)
    assert files.seen_ids == frozenset(IDS)
    assert files.seen_sha256 == {"c" * 64}
    assert files.seen_slides == {"a slide", "another"}  # a name may hold a space
    assert files.operating_point["threshold"] == 0.4
    assert files.evidence == EVIDENCE
    assert files.run_id == run_id
    assert files.model_sha256 == sha256_file(final / "model.keras")
    assert files.model_file.read_bytes() == (final / "model.keras").read_bytes()
    np.testing.assert_array_equal(files.golden[0], GOLDEN[0])
    np.testing.assert_array_equal(files.golden[1], GOLDEN[1])


def test_version_names_its_evidence_in_tags(store, run_id, version, model_name):
    entry = store.client.get_model_version(model_name, str(version.number))
    assert (entry.tags["auroc"], entry.tags["baseline_auroc"]) == ("0.9123", "0.8000")
    assert entry.tags["run_id"] == entry.run_id == run_id
    assert entry.tags["manifest_sha256"] == sha256_file(version.folder / MANIFEST)


def test_identical_model_is_not_registered_twice(final, run_id, version, model_name):
    again = registry.register_version(final, name=model_name, run_id=run_id, evidence=EVIDENCE)
    assert again.number == version.number


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
    assert (version.number, second.number, third.number) == (1, 2, 3)


def test_damaged_version_is_registered_anew(final, run_id, version, model_name):
    """mlruns/ deleted, mlflow.db kept: reusing the version would leave nothing to load."""
    shutil.rmtree(version.folder)
    again = registry.register_version(final, name=model_name, run_id=run_id, evidence=EVIDENCE)
    assert again.number == version.number + 1
    again.verify()


def test_remote_files_are_fetched_once_and_never_taken_from_under_a_reader(
    version, model_name, store, tmp_path, monkeypatch
):
    """Every check deleted and fetched the one copy: two processes did it to each other."""
    remote, fetched = version.folder, []
    monkeypatch.setattr(registry.paths, "CACHE", tmp_path)
    copies = tmp_path / "registry" / model_name

    def download(*, artifact_uri, dst_path, tracking_uri):  # noqa: ARG001
        fetched.append([folder.name for folder in copies.glob("1-*")])
        return str(shutil.copytree(remote, Path(dst_path) / "model"))

    monkeypatch.setattr(mlflow.artifacts, "download_artifacts", download)
    folder = registry.copy_of(version, "mlflow-artifacts:/x", store.uri)
    assert registry.copy_of(version, "mlflow-artifacts:/x", store.uri) == folder
    assert fetched == [[]]
    truncate(folder)
    again = registry.copy_of(version, "mlflow-artifacts:/x", store.uri)
    assert fetched == [[], [folder.name]]  # the old copy stood until the new one was whole
    registry.find_version(model_name, version.number, folder=again).verify()
    assert [path.name for path in copies.iterdir()] == [folder.name]


def test_aliases_start_empty_and_move(model_name, version):
    assert registry.champion_of(model_name) is None
    set_alias(model_name, registry.CHAMPION, version.number)
    assert registry.aliases(model_name) == {"champion": version.number}


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
    mlmodel.write_text(mlmodel.read_text().replace("src.serve", "os"))


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
def test_nothing_is_read_from_a_tampered_version(version, tamper, core):
    """Whatever is asked for, and although the files were verified before."""
    assert version.seen_ids
    tamper(version.folder)
    for read in (lambda: version.model_file, lambda: version.evidence, lambda: version.golden):
        with pytest.raises(VerificationError, match=f"model verification failed: .*{core}"):
            read()


def test_files_are_hashed_once(version, monkeypatch):
    """Catches 95 MB read again for every entry of a version that is looked at."""
    version.verify()
    monkeypatch.setattr(logged_models, "sha256_file", lambda file: pytest.fail(f"hashed {file}"))
    again = registry.find_version(version.name, version.number)
    assert again.operating_point["threshold"] == 0.4
    assert again.model_sha256


def test_version_of_an_earlier_format_says_so(store, version, model_name):
    """Catches FileNotFoundError, which no command turns into a line."""
    drop_evidence(version.folder)
    write_manifest(version.folder)
    sha256 = sha256_file(version.folder / MANIFEST)
    store.client.set_model_version_tag(model_name, "1", "manifest_sha256", sha256)
    with pytest.raises(VerificationError, match="registered by an earlier version of this project"):
        _ = registry.find_version(model_name, 1).seen_ids


def test_reading_by_mlflow_itself_does_not_spoil_a_version(version):
    """MLflow drops registered_model_meta into local folders it resolves, as `models serve` does."""
    (version.folder / "registered_model_meta").write_text("model_name: x\n")
    version.verify()


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
        registry.find_version("hcd", 3)
    assert str(caught.value) == (
        "registry has no version 3 of hcd (mlflow.db or mlruns/ deleted?); "
        "run: dvc repro --single-item --force register predict"
    )
    assert not (tmp_path / "mlflow.db").exists()


def test_unknown_version_says_what_to_run(version, model_name):
    with pytest.raises(TrackingError, match=f"no version 9 of {model_name} .*dvc repro"):
        registry.find_version(model_name, version.number + 8)


def test_mlflow_page_of_the_model_names_its_version(store, run_id, version, model_name):
    model_id = store.client.get_run(run_id).outputs.model_outputs[0].model_id
    tags = store.client.get_logged_model(model_id).tags
    assert json.loads(tags["mlflow.modelVersions"]) == [
        {"name": model_name, "version": version.number}
    ]
