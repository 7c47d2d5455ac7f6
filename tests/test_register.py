"""The stage ``register``: who becomes champion, who predicts, and on which patches they meet."""

import logging
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from src import paths, register
from src.data import labelled
from src.data.labelled import LabelledPatches
from src.evaluation.intervals import Difference
from src.params import load_params
from src.system.durable import read_json, replacing_folder, write_json
from src.tracking import registry, runs
from src.tracking.logged_models import VerificationError
from tests.tracking.support import (
    final_folder,
    model_folder,
    patches,
    record,
)

pytest_plugins = ("tests.tracking.fixtures",)

LOG = logging.getLogger("hcd.test")
BETTER, EQUAL, WORSE = Difference(0.05, 0.02, 0.08), Difference(0, 0, 0), Difference(-0.1, -0.2, 0)
UNSURE = Difference(0.01, -0.02, 0.04)


def challenger(to_baseline=BETTER):
    return register.Challenger(2, "run", auroc=0.9, baseline_auroc=0.8, to_baseline=to_baseline)


def comparison(difference, **changes):
    return register.Comparison(1, n_patches=10, n_excluded=0, difference=difference, **changes)


def outcome(to_baseline, compared, **more):
    result = register.registration_of(
        challenger(to_baseline), compared, name="m", margin=0.0, **more
    )
    chosen = result["predict_with"]
    return result["promoted"], result["champion_version"], chosen["version"], chosen["role"]


@pytest.mark.parametrize(
    ("to_baseline", "to_champion", "expected"),
    [
        # no champion yet
        (BETTER, None, (True, 2, 2, "champion")),
        (UNSURE, None, (False, None, 2, "unpromoted")),
        # champion 1 on the same patches
        (BETTER, BETTER, (True, 2, 2, "champion")),
        (BETTER, EQUAL, (True, 2, 2, "champion")),
        (BETTER, WORSE, (False, 1, 1, "champion")),
        (UNSURE, WORSE, (False, 1, 1, "champion")),
        (UNSURE, EQUAL, (False, 1, 1, "champion")),
        # a champion of another archive, below a challenger that fails the gate: it doesn't stand
        (UNSURE, BETTER, (False, 1, 2, "unpromoted")),
    ],
)
def test_who_becomes_champion_and_who_predicts(to_baseline, to_champion, expected):
    compared = None if to_champion is None else comparison(to_champion)
    assert outcome(to_baseline, compared) == expected


def test_champion_stays_where_it_can_not_be_compared():
    """None would read as 'no champion' and promote anybody."""
    compared = comparison(None, impossible="trained on every holdout patch")
    assert outcome(BETTER, compared) == (False, 1, 1, "champion")


def test_champion_that_does_not_verify_does_not_stand():
    assert outcome(BETTER, None, not_standing="broken") == (True, 2, 2, "champion")
    assert outcome(UNSURE, None, not_standing="broken") == (False, None, 2, "unpromoted")


def holdout(n: int = 40) -> pd.DataFrame:
    """Groups of two; the model ranks perfectly, the baseline at random."""
    rng = np.random.default_rng(3)
    labels = np.arange(n) % 2
    return pd.DataFrame(
        {
            "id": [f"{i:040x}" for i in range(n)],
            "group": [f"g{i // 4}" for i in range(n)],
            "label": labels.astype(np.int8),
            "probability": 0.25 + 0.5 * labels + rng.uniform(0, 0.2, n),
            "baseline_probability": rng.uniform(0, 1, n),
        }
    )


def evaluate_params():
    return load_params().evaluate.model_copy(update={"n_resamples": 200})


def compared_with(training_ids, champion_probabilities):
    champion = SimpleNamespace(version=1, training_ids=frozenset(training_ids))
    return register.compare(champion, holdout(), champion_probabilities, evaluate_params())


def test_patches_the_champion_was_trained_on_count_for_neither():
    """The champion knows the first 20 by heart and guesses the other 20 wrong."""
    rows = holdout()
    probabilities = np.where(np.arange(40) < 20, rows["label"], 1 - rows["label"]).astype(float)
    compared = compared_with(rows["id"][:20], probabilities)
    assert (compared.n_patches, compared.n_excluded) == (20, 20)
    assert (compared.auroc, compared.challenger_auroc) == (0.0, 1.0)
    assert compared.difference.value == 1.0


def test_nothing_left_to_compare_on():
    compared = compared_with(holdout()["id"], np.zeros(40))
    assert (compared.n_patches, compared.n_excluded, compared.difference) == (0, 40, None)
    assert "trained on every holdout patch" in compared.impossible


def test_one_class_left_is_no_comparison():
    rows = holdout()
    compared = compared_with(rows["id"][rows["label"] == 1], np.zeros(40))
    assert compared.difference is None
    assert "auroc needs patches of both classes" in compared.impossible


def test_rows_follow_the_ids_not_the_split():
    """predictions.parquet and the split may be sorted differently."""
    split = labelled_patches(["b", "a", "c"], rows=[7, 5, 9])
    ids = pd.Series(["c", "a"])
    assert register._rows_of(ids, split).tolist() == [9, 5]
    with pytest.raises(register.ProjectError, match=r"1 holdout ids .* first: z"):
        register._rows_of(pd.Series(["a", "z"]), split)


def labelled_patches(ids, rows, pixels=None) -> LabelledPatches:
    n = len(ids)
    return LabelledPatches(
        split="holdout",
        ids=np.array(ids),
        rows=np.array(rows, np.int64),
        labels=np.arange(n, dtype=np.uint8) % 2,
        groups=np.array([f"g{i // 4}" for i in range(n)]),
        pixels=np.zeros((0, 96, 96, 3), np.uint8) if pixels is None else pixels,
    )


def write_evaluation(rows: pd.DataFrame, *, low: float) -> None:
    """``low`` bounds the AUROC difference to the baseline from below."""
    with replacing_folder(paths.EVALUATE) as folder:
        rows.to_parquet(folder / paths.PREDICTIONS.name)
    difference = {"auroc": 0.4, "auroc_low": low, "auroc_high": 0.6}
    metrics = {"holdout": {"auroc": 1.0}, "baseline": {"auroc": 0.6}}
    write_json(paths.METRICS, {**metrics, "difference_to_baseline": difference})


@pytest.fixture
def project(store, tmp_path, keras_file, model_name, monkeypatch):  # noqa: ARG001
    """All that ``evaluate`` leaves behind, made with the tiny model; ``probability`` is its own."""
    import keras

    rows = holdout().assign(split="holdout")
    # brightness decides the tiny model, so let it follow the label, one bright step a patch
    pixels = patches(40) // 8 + (100 * rows["label"].to_numpy(np.uint8))[:, None, None, None]
    pixels = pixels.astype(np.uint8)
    model = keras.saving.load_model(keras_file)
    rows["probability"] = model.predict(pixels, verbose=0)[:, 0].astype(np.float64)
    if rows.groupby("label")["probability"].mean().diff().iloc[-1] < 0:
        pixels = pixels[[i ^ 1 for i in range(40)]]
        rows["probability"] = model.predict(pixels, verbose=0)[:, 0].astype(np.float64)
    split = labelled_patches(rows["id"].tolist(), np.arange(40), pixels)
    monkeypatch.setattr(labelled, "load_split", lambda _: split)

    monkeypatch.setattr(paths, "EVALUATE", tmp_path / "evaluate")
    monkeypatch.setattr(paths, "PREDICTIONS", tmp_path / "evaluate" / "predictions.parquet")
    monkeypatch.setattr(paths, "METRICS", tmp_path / "metrics.json")
    monkeypatch.setattr(paths, "INGEST_REPORT", tmp_path / "report.json")
    monkeypatch.setattr(paths, "REGISTRATION", tmp_path / "registration.json")
    monkeypatch.setattr(paths, "FINETUNED_MODEL", tmp_path / "finetuned")
    monkeypatch.setattr(paths, "FINAL_MODEL", tmp_path / "final")
    write_evaluation(rows, low=0.2)
    write_json(paths.INGEST_REPORT, {"digests": {"train": "f" * 64}})
    final_folder(paths.FINAL_MODEL, keras_file)
    with runs.training_run(record()) as run:
        pass
    model_folder(paths.FINETUNED_MODEL, keras_file, run.run_id, record())
    params = load_params()
    params = params.model_copy(
        update={
            "register_": params.register_.model_copy(update={"name": model_name}),
            "evaluate": evaluate_params(),
        }
    )
    monkeypatch.setattr(register, "load_params", lambda: params)
    monkeypatch.setattr(register, "configure", lambda _: None)
    return SimpleNamespace(name=model_name, run_id=run.run_id, rows=rows)


@pytest.mark.tensorflow
def test_first_version_that_beats_the_baseline_is_champion(project, store):
    register.main()
    registration = read_json(paths.REGISTRATION)
    assert registration["promoted"] is True
    assert registration["predict_with"] == {"version": 1, "role": "champion"}
    assert registration["challenger"]["run_id"] == project.run_id
    assert registration["challenger"]["auroc"] == 1.0
    assert registry.aliases(project.name) == {"champion": 1, "challenger": 1}
    evidence = registry.load_version(project.name, 1).evidence
    assert evidence["metrics"] == read_json(paths.METRICS)
    assert evidence["data"] == {"train": "f" * 64}
    tags = store.client.get_model_version(project.name, "1").tags
    assert tags["decision"].startswith("promoted: beats the colour baseline")
    # evaluate's numbers on the run, also when the run had to be restored
    assert store.client.get_run(project.run_id).data.metrics["holdout.auroc"] == 1.0


@pytest.mark.tensorflow
def test_register_again_changes_nothing(project):
    register.main()
    register.main()
    assert registry.aliases(project.name) == {"champion": 1, "challenger": 1}
    assert read_json(paths.REGISTRATION)["promoted"] is True


@pytest.mark.tensorflow
def test_not_better_than_colour_stays_challenger(project):
    write_evaluation(project.rows, low=-0.01)
    register.main()
    registration = read_json(paths.REGISTRATION)
    assert registration["promoted"] is False
    assert registration["champion_version"] is None
    assert registration["predict_with"] == {"version": 1, "role": "unpromoted"}
    assert registry.aliases(project.name) == {"challenger": 1}
    assert registration["reasons"][0].startswith("does not beat the colour baseline")


@pytest.mark.tensorflow
@pytest.mark.usefixtures("project")
def test_champion_with_other_weights_is_scored_again_on_the_same_patches(keras_file):
    """Its AUROC of long ago was measured on other patches."""
    register.main()
    final_folder(paths.FINAL_MODEL, keras_file, training_ids=["9" * 40])
    fit = read_json(paths.FINETUNED_MODEL / "fit.json")
    write_json(paths.FINETUNED_MODEL / "fit.json", {**fit, "final_weights_sha256": "e" * 64})
    register.main()
    registration = read_json(paths.REGISTRATION)
    assert registration["champion"]["version"] == 1
    assert registration["champion"]["n_patches"] == 40
    assert registration["champion"]["auroc"] == 1.0
    assert registration["champion"]["difference"]["value"] == 0.0
    assert registration["champion_version"] == 2


@pytest.mark.tensorflow
def test_reloaded_version_must_give_the_probabilities_of_evaluate(project):
    """A registered model that isn't the one evaluated would be promoted by the other's figures."""
    rows = project.rows
    rows["probability"] = rows["probability"] + 2e-4
    write_evaluation(rows, low=0.2)
    with pytest.raises(VerificationError, match=r"differs by up to 0\.0002"):
        register.main()
    assert registry.aliases(project.name) == {}
    assert not paths.REGISTRATION.exists()


@pytest.mark.tensorflow
def test_champion_whose_files_are_gone_does_not_block(project, keras_file):
    register.main()
    (registry.load_version(project.name, 1).folder / "data/model.keras").unlink()
    final_folder(paths.FINAL_MODEL, keras_file, training_ids=["9" * 40])
    register.main()
    registration = read_json(paths.REGISTRATION)
    assert registration["predict_with"] == {"version": 2, "role": "champion"}
    assert "champion version 1 doesn't stand" in registration["reasons"][0]
