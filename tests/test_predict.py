"""The stage ``predict``: the right ids, the right order, the right version, or one line."""

import csv
import hashlib
import json
import logging

import numpy as np
import pandas as pd
import pytest

from src import paths, predict
from src.params import load_params
from src.system.durable import read_json, verify_folder, write_json
from src.system.errors import VerificationError
from src.tracking import registry, runs
from src.tracking.promotions import set_alias
from tests.tracking.support import final_folder, patches, record

pytest_plugins = ("tests.tracking.fixtures",)

TEST_IDS = ["c" * 40, "a" * 40, "d" * 40, "b" * 40]  # in the order of sample_submission.csv


@pytest.fixture
def table():
    """Two of three labelled patches are tumour; the third test patch is quarantined."""
    train = pd.DataFrame({"id": ["1" * 40, "2" * 40, "3" * 40], "subset": "train"})
    train = train.assign(row=[0, 1, 2], label=[1, 1, 0], submission_order=None)
    test = pd.DataFrame({"id": sorted(TEST_IDS), "subset": "test", "label": None})
    order = [TEST_IDS.index(i) for i in test["id"]]
    test = test.assign(row=[0, 1, 2, -1], submission_order=order)
    joined = pd.concat([train.astype(object), test.astype(object)], ignore_index=True)
    return joined.astype({"row": "int64", "label": "Int8", "submission_order": "Int64"})


@pytest.fixture
def version(store, tmp_path, keras_file, model_name):  # noqa: ARG001
    with runs.training_run(record()) as run:
        pass
    evidence = {"auroc": 0.9, "baseline_auroc": 0.8}
    final = final_folder(tmp_path / "final", keras_file)
    return registry.register_version(final, name=model_name, run_id=run.run_id, evidence=evidence)


def test_order_is_that_of_the_sample_submission(table):
    assert predict.in_submission_order(table)["id"].tolist() == TEST_IDS


@pytest.mark.parametrize("order", [[0, 1, 2, 2], [1, 2, 3, 4], [0, 1, 2, None]])
def test_broken_order_is_refused(table, order):
    table.loc[table["subset"] == "test", "submission_order"] = pd.array(order, dtype="Int64")
    with pytest.raises(predict.PredictionError, match="submission_order of the 4 test patches"):
        predict.in_submission_order(table)


def test_no_test_patches_is_refused(table):
    with pytest.raises(predict.PredictionError, match="no test patches"):
        predict.in_submission_order(table[table["subset"] == "train"])


@pytest.mark.parametrize("wrong", [np.nan, -1e-9, 1 + 1e-9, np.inf])
def test_what_is_no_probability_is_refused(wrong):
    with pytest.raises(predict.PredictionError, match=r"1 probabilities are not in \[0, 1\]"):
        predict.submission_table(np.array(["a", "b"]), np.array([0.5, wrong]))


def test_id_twice_is_refused():
    with pytest.raises(predict.PredictionError, match="1 ids come twice, first: a"):
        predict.submission_table(np.array(["a", "a"]), np.array([0.5, 0.5]))


def registration(name: str, version: int, role: str, **changes) -> dict:
    chosen = {"version": version, "role": role, "manifest_sha256": changes.pop("manifest", None)}
    said = {"reasons": ["does not beat the baseline"], "champion_version": None}
    return {"name": name, "predict_with": chosen, **said, **changes}


def test_unpromoted_is_refused_where_params_say_so():
    """With the reason; and catches 'no champion' while there is one."""
    chosen = registration("m", 1, "unpromoted")
    with pytest.raises(predict.PredictionError, match="does not beat the baseline; improve"):
        predict.why_unpromoted(chosen, "refuse")
    assert predict.why_unpromoted(chosen, "allow") == "there is no champion of m"
    passed_over = registration("m", 2, "unpromoted", champion_version=1)
    said = predict.why_unpromoted(passed_over, "allow")
    assert said.startswith("champion version 1 scores significantly below the challenger")


@pytest.mark.tensorflow
def test_version_of_that_number_in_another_registry_is_refused(version):
    """Catches a colleague's version 1 that predicts in the place of ours."""
    ours = registration(version.name, 1, "unpromoted", manifest=version.manifest_sha256)
    predict.check_chosen(ours, manifest_sha256=version.manifest_sha256, champion=None)
    theirs = registration(version.name, 1, "champion", manifest="e" * 64)
    with pytest.raises(predict.PredictionError, match="is not the one that register chose"):
        predict.check_chosen(theirs, manifest_sha256=version.manifest_sha256, champion=1)


@pytest.mark.tensorflow
def test_champion_of_then_does_not_predict_as_champion_now(version):
    """promote --rollback moves the alias; registration.json still says champion."""
    chosen = registration(version.name, 1, "champion", manifest=version.manifest_sha256)
    found = version.manifest_sha256
    predict.check_chosen(chosen, manifest_sha256=found, champion=1)
    with pytest.raises(predict.PredictionError, match=r"none is now; run: dvc repro .*register"):
        predict.check_chosen(chosen, manifest_sha256=found, champion=None)


@pytest.fixture
def stage(tmp_path, table, version, monkeypatch):
    """All that the stage reads; its champion is ``version``. Returns the test pixels."""
    pixels = patches(3)
    monkeypatch.setattr(predict, "open_pixels", lambda *_: pixels)
    monkeypatch.setattr(predict, "read_patches", lambda *_: table)
    monkeypatch.setattr(predict, "configure", lambda _: None)
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    for name, path in (
        ("SUBMISSION_DIR", "submission"),
        ("SUBMISSION", "submission/submission.csv"),
        ("LINEAGE", "submission/lineage.json"),
        ("REGISTRATION", "registration.json"),
        ("INGEST_REPORT", "report.json"),
    ):
        monkeypatch.setattr(paths, name, tmp_path / path)
    params = load_params()
    monkeypatch.setattr(predict, "load_params", lambda: params)
    write_json(paths.INGEST_REPORT, {"no_submission": False, "digests": {"test": "x"}})
    chosen = registration(version.name, 1, "champion", manifest=version.manifest_sha256)
    write_json(paths.REGISTRATION, chosen)
    set_alias(version.name, registry.CHAMPION, 1)
    return pixels


@pytest.mark.tensorflow
def test_written_submission_and_its_lineage(version, stage, keras_file):
    """Rows in file order instead of submission order would score 0.5 and never fail."""
    import keras

    predict.main()
    verify_folder(paths.SUBMISSION_DIR)
    raw = paths.SUBMISSION.read_bytes()
    header, *rows = list(csv.reader(raw.decode().splitlines()))
    assert header == ["id", "label"]
    assert [row[0] for row in rows] == TEST_IDS
    a, b, c = keras.saving.load_model(keras_file).predict(stage, verbose=0)[:, 0]
    expected = [c, a, 2 / 3, b]  # d is quarantined: the training prevalence
    np.testing.assert_allclose([float(row[1]) for row in rows], expected, atol=1e-6)
    lineage = read_json(paths.LINEAGE)
    assert lineage["submission"]["sha256"] == hashlib.sha256(raw).hexdigest()
    assert lineage["submission"]["n_rows"] == 4
    assert lineage["submission"]["quarantined"] == ["d" * 40]
    model = lineage["model"]
    assert (model["name"], model["version"], model["role"]) == (version.name, 1, "champion")
    assert (model["run_id"], model["model_sha256"]) == (version.run_id, version.model_sha256)
    assert lineage["data"] == {"test": "x"}
    assert set(lineage["code"]) == {"git_commit", "git_dirty"}


@pytest.mark.tensorflow
@pytest.mark.usefixtures("stage")
def test_earlier_submission_stays_when_the_new_one_fails(version):
    predict.main()
    before = paths.SUBMISSION.read_bytes()
    (version.folder / "data/model.keras").write_bytes(b"PK")
    with pytest.raises(VerificationError, match="sha256 mismatch"):
        predict.main()
    verify_folder(paths.SUBMISSION_DIR)
    assert paths.SUBMISSION.read_bytes() == before
    assert [f.name for f in paths.SUBMISSION_DIR.parent.glob(".submission*")] == []


@pytest.mark.tensorflow
@pytest.mark.usefixtures("stage")
def test_unpromoted_is_allowed_but_said(version, caplog):
    chosen = registration(version.name, 1, "unpromoted", manifest=version.manifest_sha256)
    write_json(paths.REGISTRATION, chosen)
    logging.getLogger("hcd").propagate = True
    predict.main()
    assert f"there is no champion of {version.name}: predicting with version 1" in caplog.text
    assert read_json(paths.LINEAGE)["model"]["role"] == "unpromoted"


def test_no_submission_says_why_instead_of_a_table(tmp_path):
    """Catches an old submission.csv left beside data that may not be submitted."""
    folder = tmp_path / "submission"
    folder.mkdir()
    (folder / "submission.csv").write_text("id,label\n")
    predict.write_no_submission(folder, data_digests={"train": "x"})
    assert set(verify_folder(folder)) == {"lineage.json"}
    lineage = json.loads((folder / "lineage.json").read_text())
    assert lineage["submission"] is None
    assert "ingest.no_submission is true" in lineage["reason"]
