"""The stage ``predict``: the right ids, the right order, the right version, or one line."""

import csv
import hashlib
import json
import logging

import numpy as np
import pandas as pd
import pytest

from src import paths, predict
from src.system.durable import verify_folder
from src.tracking import registry, runs
from src.tracking.logged_models import VerificationError
from tests.tracking.support import final_folder, patches, record

pytest_plugins = ("tests.tracking.fixtures",)

LOG = logging.getLogger("hcd.test")
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
    number = registry.register_version(final, name=model_name, run_id=run.run_id, evidence=evidence)
    return registry.load_version(model_name, number)


def test_order_is_that_of_the_sample_submission(table):
    assert predict.in_submission_order(table)["id"].tolist() == TEST_IDS


def test_prevalence_counts_labelled_patches_only(table):
    assert predict.training_prevalence(table) == pytest.approx(2 / 3)


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


def test_bounds_are_probabilities():
    table = predict.submission_table(np.array(["a", "b"]), np.array([0.0, 1.0]))
    assert table["label"].tolist() == [0.0, 1.0]


def test_id_twice_is_refused():
    with pytest.raises(predict.PredictionError, match="1 ids come twice, first: a"):
        predict.submission_table(np.array(["a", "a"]), np.array([0.5, 0.5]))


def registration(name: str, version: int, role: str, **changes) -> dict:
    chosen = {"version": version, "role": role, "manifest_sha256": changes.pop("manifest", None)}
    said = {"reasons": ["does not beat the baseline"], "champion_version": None}
    return {"name": name, "predict_with": chosen, **said, **changes}


def test_unpromoted_is_refused_where_params_say_so():
    """Before anything is loaded, and with the reason."""
    with pytest.raises(predict.PredictionError, match="does not beat the baseline; improve"):
        predict.load_chosen(registration("m", 1, "unpromoted"), unpromoted="refuse", log=LOG)


@pytest.mark.tensorflow
def test_unpromoted_is_allowed_but_said(version, caplog):
    chosen = registration(version.name, version.version, "unpromoted")
    loaded = predict.load_chosen(chosen, unpromoted="allow", log=LOG)
    assert loaded.version == version.version
    assert "no champion of tiny" in caplog.text


def test_champion_that_was_passed_over_is_said():
    """Catches 'no champion stands' while one does."""
    passed_over = registration("m", 2, "unpromoted", champion_version=1)
    with pytest.raises(predict.PredictionError, match="champion version 1 scores surely below"):
        predict.load_chosen(passed_over, unpromoted="refuse", log=LOG)


@pytest.mark.tensorflow
def test_version_of_that_number_in_another_registry_is_refused(version):
    """Catches a colleague's version 1 that predicts in the place of ours."""
    ours = registration(version.name, 1, "unpromoted", manifest=version.manifest_sha256)
    predict.check_chosen(ours)
    theirs = registration(version.name, 1, "champion", manifest="e" * 64)
    with pytest.raises(predict.PredictionError, match="is not the one that register chose"):
        predict.check_chosen(theirs)


@pytest.mark.tensorflow
def test_champion_of_then_does_not_predict_as_champion_now(version):
    """promote --rollback moves the alias; registration.json still says champion."""
    chosen = registration(version.name, 1, "champion", manifest=version.manifest_sha256)
    registry.set_alias(version.name, registry.CHAMPION, 1)
    predict.check_chosen(chosen)
    registry.drop_alias(version.name, registry.CHAMPION)
    with pytest.raises(predict.PredictionError, match=r"none is now; run: dvc repro .*register"):
        predict.check_chosen(chosen)


@pytest.mark.tensorflow
def test_tampered_version_is_not_used(version):
    (version.folder / "data/model.keras").write_bytes(b"PK")
    chosen = registration(version.name, version.version, "champion")
    with pytest.raises(VerificationError, match="sha256 mismatch"):
        predict.load_chosen(chosen, unpromoted="allow", log=LOG)


@pytest.fixture
def packed(tmp_path, table, monkeypatch):
    """Test pixels on disk, and tables as ``ingest`` would leave them."""
    pixels = patches(3)
    monkeypatch.setattr("src.data.patches.open_pixels", lambda *_, **__: pixels)
    monkeypatch.setattr("src.data.patches.read_patches", lambda *_: table)
    monkeypatch.setattr(paths, "SUBMISSION_DIR", tmp_path / "submission")
    return pixels


@pytest.mark.tensorflow
def test_submission_joins_probabilities_to_ids(version, packed, keras_file):
    """Rows in file order instead of submission order would score 0.5 and never fail."""
    import keras

    submission = predict.predict(version, batch_size=2, log=LOG)
    a, b, c = keras.saving.load_model(keras_file).predict(packed, verbose=0)[:, 0]
    assert submission.table["id"].tolist() == TEST_IDS
    expected = [c, a, 2 / 3, b]  # d is quarantined: the training prevalence
    np.testing.assert_allclose(submission.table["label"], expected, atol=1e-6)
    assert submission.quarantined == ["d" * 40]


@pytest.mark.tensorflow
def test_written_submission_and_its_lineage(version, packed):  # noqa: ARG001
    submission = predict.predict(version, batch_size=4, log=LOG)
    predict.write_submission(
        paths.SUBMISSION_DIR, submission, version, role="champion", data_digests={"train.npy": "x"}
    )
    verify_folder(paths.SUBMISSION_DIR)
    raw = (paths.SUBMISSION_DIR / "submission.csv").read_bytes()
    header, *rows = list(csv.reader(raw.decode().splitlines()))
    assert header == ["id", "label"]
    assert [row[0] for row in rows] == TEST_IDS
    np.testing.assert_array_equal(
        np.array([row[1] for row in rows], np.float32), submission.table["label"].astype(np.float32)
    )
    lineage = json.loads((paths.SUBMISSION_DIR / "lineage.json").read_text())
    assert lineage["submission"]["sha256"] == hashlib.sha256(raw).hexdigest()
    assert lineage["submission"]["n_rows"] == 4
    assert lineage["submission"]["quarantined"] == ["d" * 40]
    model = lineage["model"]
    assert (model["name"], model["version"], model["role"]) == (version.name, 1, "champion")
    assert (model["run_id"], model["model_sha256"]) == (version.run_id, version.model_sha256)
    assert lineage["data"] == {"train.npy": "x"}
    assert set(lineage["code"]) == {"git_commit", "git_dirty"}


@pytest.mark.tensorflow
def test_earlier_submission_stays_when_the_new_one_fails(version, packed, monkeypatch):  # noqa: ARG001
    from src.tracking import lineage

    def broken(**_):
        raise OSError("disk full")

    submission = predict.predict(version, batch_size=4, log=LOG)
    chosen = {"role": "champion", "data_digests": {}}
    predict.write_submission(paths.SUBMISSION_DIR, submission, version, **chosen)
    monkeypatch.setattr(lineage, "submission_lineage", broken)
    with pytest.raises(OSError, match="disk full"):
        predict.write_submission(paths.SUBMISSION_DIR, submission, version, **chosen)
    verify_folder(paths.SUBMISSION_DIR)
    assert [f.name for f in paths.SUBMISSION_DIR.parent.glob(".submission*")] == []


def test_no_submission_says_why_instead_of_a_table(tmp_path, caplog):
    """Catches an old submission.csv left beside data that may not be submitted."""
    folder = tmp_path / "submission"
    folder.mkdir()
    (folder / "submission.csv").write_text("id,label\n")
    predict.write_no_submission(folder, data_digests={"train": "x"}, log=LOG)
    assert set(verify_folder(folder)) == {"lineage.json"}
    lineage = json.loads((folder / "lineage.json").read_text())
    assert lineage["submission"] is None
    assert "ingest.no_submission is true" in lineage["reason"]
    assert "no submission.csv" in caplog.text
