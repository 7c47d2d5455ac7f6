"""The stage ``register``: who becomes champion, who predicts, and on which patches they meet."""

import json
import logging
import threading
import time
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from src import deciding, paths, promote, register
from src.data.identity import OtherData
from src.deciding import Champion, Comparison
from src.evaluation import promotion
from src.evaluation.delong import delong_difference
from src.evaluation.intervals import Difference
from src.system.durable import MANIFEST, read_json, sha256_file, write_json, write_manifest
from src.system.errors import ProjectError
from src.tracking import aliases, golden, registry
from src.tracking.logged_models import VerificationError
from tests.evaluated import evaluate_params, holdout, labelled_patches, write_evaluation
from tests.tracking.support import (
    final_folder,
)

pytest_plugins = ("tests.tracking.fixtures", "tests.fixtures")

LOG = logging.getLogger("hcd.test")
BETTER, EQUAL, WORSE = Difference(0.05, 0.02, 0.08), Difference(0, 0, 0), Difference(-0.1, -0.2, 0)
UNSURE = Difference(0.01, -0.02, 0.04)


def version(number):
    found = {"auroc": 0.9, "baseline_auroc": 0.8}
    return SimpleNamespace(
        name="m", version=number, run_id="run", manifest_sha256=f"m{number}", evidence=found
    )


def comparison(difference, **changes):
    counted = {"n_patches": 10, "n_excluded": 0, "n_groups": {"normal": 5, "tumour": 5}}
    return Comparison(1, difference=difference, **{**counted, **changes})


def registration(to_baseline, compared, *, absent=None, is_chosen=False, rejected=None):
    """With champion 1, unless there is nothing to compare with."""
    champion = Champion() if compared is None else Champion(1, files=version(1))
    if absent is not None:
        champion = Champion(1, absent=absent)
    impossible = None if compared is None else compared.impossible
    evidence = promotion.Evidence(
        to_baseline=to_baseline,
        to_champion=None if compared is None else compared.difference,
        margin=0.0,
        n_groups={"normal": 5, "tumour": 5} if compared is None else compared.n_groups,
        min_groups=2,
        reload_error=0.0,
        golden_error=0.0,
        rejected=rejected,
        no_champion=champion.absent,
        not_judged={} if impossible is None else {"not_worse_than_champion": impossible},
    )
    decision = promotion.decide(evidence)
    return register.registration_of(
        version(2), champion, evidence, compared, decision, is_chosen=is_chosen
    )


def outcome(*args, **more):
    result = registration(*args, **more)
    chosen = result["predict_with"]
    assert chosen["manifest_sha256"] == f"m{chosen['version']}"
    return result["promoted"], result["champion_version"], chosen["version"], chosen["role"]


@pytest.mark.parametrize(
    ("to_baseline", "to_champion", "expected"),
    [
        # no champion yet
        (BETTER, None, (True, 2, 2, "champion")),
        (UNSURE, None, (False, None, 2, "unpromoted")),
        # champion 1 on the same patches
        (BETTER, BETTER, (True, 2, 2, "champion")),
        (BETTER, EQUAL, (False, 1, 1, "champion")),
        (BETTER, UNSURE, (False, 1, 1, "champion")),
        (BETTER, WORSE, (False, 1, 1, "champion")),
        (UNSURE, WORSE, (False, 1, 1, "champion")),
        (UNSURE, UNSURE, (False, 1, 1, "champion")),
        # a champion of another archive, surely below a challenger that fails the gate
        (UNSURE, BETTER, (False, 1, 2, "unpromoted")),
    ],
)
def test_who_becomes_champion_and_who_predicts(to_baseline, to_champion, expected):
    compared = None if to_champion is None else comparison(to_champion)
    assert outcome(to_baseline, compared) == expected


def test_champion_chosen_by_a_person_predicts_whatever_the_figures_say():
    """Else a rollback would be undone by the next submission."""
    assert outcome(UNSURE, comparison(BETTER), is_chosen=True) == (False, 1, 1, "champion")


def test_rejected_challenger_neither_wins_nor_predicts():
    assert outcome(BETTER, comparison(BETTER), rejected="no") == (False, 1, 1, "champion")


def test_champion_stays_where_it_can_not_be_compared():
    """None would read as 'no champion' and promote anybody."""
    compared = comparison(None, impossible="saw every holdout patch in training")
    assert outcome(BETTER, compared) == (False, 1, 1, "champion")


def test_champion_that_does_not_verify_does_not_stand():
    assert outcome(BETTER, None, absent="broken") == (True, 2, 2, "champion")
    assert outcome(UNSURE, None, absent="broken") == (False, None, 2, "unpromoted")


def test_too_few_groups_decide_nothing():
    """Catches a promotion by one slide."""
    compared = comparison(BETTER, n_groups={"normal": 5, "tumour": 1})
    result = registration(BETTER, compared)
    assert result["promoted"] is False
    failed = [row["rule"] for row in result["rules"] if not row["held"]]
    assert failed == ["minimum_groups"]


def compared_with(seen_ids, champion_probabilities):
    return compared_with_seen(champion_probabilities, seen_ids=frozenset(seen_ids))


def compared_with_seen(champion_probabilities, **seen):
    seen = {"seen_ids": frozenset(), "seen_sha256": frozenset(), **seen}
    champion = SimpleNamespace(version=1, **seen)
    return deciding.compare(champion, holdout(), champion_probabilities, evaluate_params())


def test_patches_the_champion_was_trained_on_count_for_neither():
    """The champion knows the first 20 by heart and guesses the other 20 wrong."""
    rows = holdout()
    probabilities = np.where(np.arange(40) < 20, rows["label"], 1 - rows["label"]).astype(float)
    compared = compared_with(rows["id"][:20], probabilities)
    assert (compared.n_patches, compared.n_excluded) == (20, 20)
    assert compared.n_groups == {"normal": 5, "tumour": 5}
    assert (compared.auroc, compared.challenger_auroc) == (0.0, 1.0)
    assert compared.difference.value == 1.0


def test_patches_the_champion_saw_under_other_ids_count_for_neither():
    """PCam's ids are made from split and row: Kaggle's archive has the same pixels, other ids."""
    rows = holdout()
    probabilities = np.where(np.arange(40) < 20, rows["label"], 1 - rows["label"]).astype(float)
    compared = compared_with_seen(probabilities, seen_sha256=frozenset(rows["sha256"][:20]))
    assert (compared.n_patches, compared.n_excluded) == (20, 20)
    assert compared.auroc == 0.0


def test_few_groups_that_are_alike_promise_no_more_than_their_patches():
    """Two groups of the same difference: resampled they have no spread at all, and the interval
    would be a point above 0."""
    rng = np.random.default_rng(2)
    one = pd.DataFrame({"label": np.arange(20) % 2, "score": rng.random(20)})
    one["other"] = rng.random(20)
    rows = pd.concat([one.assign(group="a"), one.assign(group="b")], ignore_index=True)
    found = deciding.difference(rows, rows["score"], rows["other"], evaluate_params())
    by_patch = delong_difference(rows["label"], rows["score"], rows["other"], confidence=0.95)
    assert (found.low, found.high) == (by_patch.low, by_patch.high)
    assert found.low < found.value < found.high


def test_nothing_left_to_compare_on():
    compared = compared_with(holdout()["id"], np.zeros(40))
    assert (compared.n_patches, compared.n_excluded, compared.difference) == (0, 40, None)
    assert "saw every holdout patch in training" in compared.impossible


def test_one_class_left_is_no_comparison():
    rows = holdout()
    compared = compared_with(rows["id"][rows["label"] == 1], np.zeros(40))
    assert compared.difference is None
    assert "auroc needs patches of both classes" in compared.impossible


def test_rows_follow_the_ids_not_the_split():
    """predictions.parquet and the split may be sorted differently."""
    split = labelled_patches(["b", "a", "c"], rows=[7, 5, 9])
    ids = pd.Series(["c", "a"])
    assert deciding.rows_of(ids, split).tolist() == [9, 5]
    with pytest.raises(ProjectError, match=r"1 holdout ids .* first: z"):
        deciding.rows_of(pd.Series(["a", "z"]), split)


def predicts(registration):
    chosen = registration["predict_with"]
    return chosen["version"], chosen["role"]


def log_of(name):
    reading = aliases.read_log(name)
    assert reading.problems == []
    return reading.entries


@pytest.mark.tensorflow
def test_first_version_that_beats_the_baseline_is_champion(project, store):
    register.main()
    registration = read_json(paths.REGISTRATION)
    assert registration["promoted"] is True
    assert predicts(registration) == (1, "champion")
    assert registration["challenger"]["run_id"] == project.run_id
    assert registration["challenger"]["auroc"] == 1.0
    assert registry.aliases(project.name) == {"champion": 1, "challenger": 1}
    evidence = registry.load_version(project.name, 1).evidence
    assert evidence["metrics"] == read_json(paths.METRICS)
    assert evidence["data"] == {"train": "f" * 64}
    tags = store.client.get_model_version(project.name, "1").tags
    assert tags["decision"].startswith("promoted: every file is the one")
    assert set(json.loads(tags["rules"]).values()) == {True}
    evidence_file = paths.PROMOTIONS / project.name / "evidence" / f"{tags['evidence_sha256']}.json"
    assert read_json(evidence_file)["rules"] == registration["rules"]
    assert [(e.action, e.alias, e.from_version, e.to_version) for e in log_of(project.name)] == [
        ("register", "challenger", None, 1),
        ("register", "champion", None, 1),
    ]
    # evaluate's numbers on the run, also when the run had to be restored
    assert store.client.get_run(project.run_id).data.metrics["holdout.auroc"] == 1.0


@pytest.mark.tensorflow
def test_register_again_changes_nothing(project):
    register.main()
    register.main()
    assert registry.aliases(project.name) == {"champion": 1, "challenger": 1}
    assert read_json(paths.REGISTRATION)["promoted"] is True
    assert len(log_of(project.name)) == 2


@pytest.mark.tensorflow
def test_model_of_another_split_or_data_is_not_registered(project, monkeypatch):
    """Catches a leaked holdout: split anew, evaluated again, and judged on patches it knows."""
    monkeypatch.setattr(register, "start", lambda _: pytest.fail("TensorFlow was started"))
    for folder, key, core in (
        (paths.FINETUNED_MODEL, "split_sha256", "finetuned was trained on another split"),
        (paths.FINETUNED_MODEL, "content_digest", "finetuned was trained on other data"),
        (paths.HEAD_MODEL, "split_sha256", "head was trained on another split"),
    ):
        right = read_json(folder / "run.json")
        dataset = {**right["record"]["dataset"], key: "0" * 64}
        wrong = {**right, "record": {**right["record"], "dataset": dataset}}
        write_json(folder / "run.json", wrong)
        with pytest.raises(OtherData, match=rf"{core} .*000….* than lies here .*run: dvc repro"):
            register.main()
        write_json(folder / "run.json", right)
    assert registry.versions(project.name) == []


@pytest.mark.tensorflow
def test_registering_a_forced_champion_again_leaves_its_reasons(project):
    """Catches 'not promoted' on the version that is champion, by a person's word."""
    write_evaluation(project.rows.assign(baseline_probability=project.rows["probability"]), low=0)
    register.main()
    promote.promote(project.params, 1, force=True, why="checked by hand", log=LOG)
    before = registry.version_tags(project.name, 1)
    register.main()
    assert predicts(read_json(paths.REGISTRATION)) == (1, "champion")
    assert registry.version_tags(project.name, 1) == before
    assert before["decision"].startswith("promoted against the rules")


def test_two_at_once_decide_one_after_the_other(tmp_path, monkeypatch):
    """Else both compare with the same champion, and the later alias wins unseen."""
    inside, most = [], []

    def decide(*_):
        inside.append(1)
        most.append(len(inside))
        time.sleep(0.1)
        inside.pop()

    monkeypatch.setattr(paths, "TRACKING_LOCK", tmp_path / "tracking" / "tracking.lock")
    for name in ("start", "configure", "report", "check_trained_here"):
        monkeypatch.setattr(register, name, lambda *_: None)
    monkeypatch.setattr(register, "decide", decide)
    threads = [threading.Thread(target=register.main) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1, 1, 1]


@pytest.mark.tensorflow
def test_not_better_than_colour_stays_challenger(project):
    write_evaluation(project.rows.assign(baseline_probability=project.rows["probability"]), low=0)
    register.main()
    registration = read_json(paths.REGISTRATION)
    assert registration["promoted"] is False
    assert registration["champion_version"] is None
    assert predicts(registration) == (1, "unpromoted")
    assert registry.aliases(project.name) == {"challenger": 1}
    assert registration["reasons"][3].startswith("does not beat the colour baseline")


@pytest.mark.tensorflow
def test_same_model_is_no_reason_to_change_the_champion(project, keras_file):
    """Catches a champion that changes with every run, by figures that are all the same."""
    register.main()
    final_folder(paths.FINAL_MODEL, keras_file, seen_ids=["9" * 40])
    register.main()
    registration = read_json(paths.REGISTRATION)
    assert registration["challenger_version"] == 2
    assert registration["champion"]["n_patches"] == 40
    assert registration["champion"]["difference"]["value"] == 0.0
    assert (registration["champion_version"], registration["promoted"]) == (1, False)
    assert predicts(registration) == (1, "champion")
    assert registry.aliases(project.name) == {"champion": 1, "challenger": 2}


@pytest.mark.tensorflow
@pytest.mark.parametrize("same_weights", [True, False])
def test_champion_of_another_model_is_scored_again_on_the_same_patches(
    project, keras_file, tmp_path, same_weights
):
    """Catches the challenger's own scores taken for the champion's: of equal weights, but with
    test-time augmentation, say, which is in the model and not in its weights."""
    import keras

    model = keras.saving.load_model(keras_file)
    for weight in model.weights:
        weight.assign(-weight.numpy())
    model.save(tmp_path / "bad.keras")
    weights = "f" * 64 if same_weights else "e" * 64
    batch = project.pixels[:8]
    champion = registry.register_version(
        final_folder(tmp_path / "champion", tmp_path / "bad.keras", seen_ids=["9" * 40]),
        name=project.name,
        run_id=project.run_id,
        evidence={"auroc": 0.9, "baseline_auroc": 0.5, "final_weights_sha256": weights},
        golden_batch=golden.Golden(batch, deciding.logits_of(model, batch)),
    )
    with aliases.alias_changes(project.name) as changes:
        changes.move("champion", champion, expected=None, action="register", why="the first")
    fit = read_json(paths.FINETUNED_MODEL / "fit.json")
    write_json(paths.FINETUNED_MODEL / "fit.json", {**fit, "final_weights_sha256": "f" * 64})
    register.main()
    registration = read_json(paths.REGISTRATION)
    assert registration["champion"]["auroc"] == 0.0
    assert registration["champion"]["difference"]["value"] == 1.0
    assert predicts(registration) == (2, "champion")


@pytest.mark.tensorflow
def test_going_back_to_an_earlier_model_finds_its_version(project, keras_file):
    """Catches a copy of 95 MB for every time that parameters are set back."""
    register.main()
    final_folder(paths.FINAL_MODEL, keras_file, seen_ids=["9" * 40])
    register.main()
    final_folder(paths.FINAL_MODEL, keras_file)
    register.main()
    assert read_json(paths.REGISTRATION)["challenger_version"] == 1
    assert [entry.version for entry in registry.versions(project.name)] == [1, 2]


@pytest.mark.tensorflow
def test_reloaded_version_must_give_the_probabilities_of_evaluate(project):
    """A registered model that isn't the one evaluated would be promoted by the other's figures."""
    rows = project.rows
    rows["probability"] = rows["probability"] + 2e-4
    write_evaluation(rows, low=0.2)
    with pytest.raises(VerificationError, match=r"failed: .* differ by up to 0\.0002"):
        register.main()
    assert registry.aliases(project.name) == {}
    assert not paths.REGISTRATION.exists()


@pytest.mark.tensorflow
def test_champion_whose_files_are_gone_does_not_block(project, keras_file):
    register.main()
    (registry.load_version(project.name, 1).folder / "data/model.keras").unlink()
    final_folder(paths.FINAL_MODEL, keras_file, seen_ids=["9" * 40])
    register.main()
    registration = read_json(paths.REGISTRATION)
    assert predicts(registration) == (2, "champion")
    assert "champion version 1 doesn't stand" in registration["reasons"][4]
    assert "champion version 1 doesn't stand" in log_of(project.name)[-1].why


@pytest.mark.tensorflow
def test_challenger_that_does_not_give_its_golden_logits_gets_no_alias(project, monkeypatch):
    """Catches a version that only seems to be the model: other software, swapped weights."""
    logits_of = deciding.logits_of
    for module in (register, deciding):
        monkeypatch.setattr(module, "logits_of", lambda *a: logits_of(*a) + next(drift))
    drift = iter([0.0, 2e-3])
    with pytest.raises(VerificationError, match=r"failed: .* logits differ by up to 0\.002"):
        register.main()
    assert registry.aliases(project.name) == {}
    (entry,) = registry.versions(project.name)
    assert entry.tags["decision"].startswith("not promoted: model verification failed")


@pytest.mark.tensorflow
def test_champion_that_does_not_give_its_golden_logits_does_not_stand(project, monkeypatch):
    register.main()
    monkeypatch.setattr(deciding, "logits_of", lambda *_: np.full(8, 9.0))
    champion = deciding.standing_champion(project.name, LOG)
    assert (champion.version, champion.files) == (1, None)
    assert "model verification failed: golden batch of version 1" in champion.absent
    assert "not reproduced, logits differ by up to" in champion.absent


@pytest.mark.tensorflow
def test_champion_of_an_earlier_format_does_not_stand(project, store):
    """Catches FileNotFoundError, which no command turns into a line."""
    register.main()
    folder = registry.version_folder(project.name, 1).folder
    (folder / "evidence/seen_sha256.txt").unlink()
    write_manifest(folder)
    sha256 = sha256_file(folder / MANIFEST)
    store.client.set_model_version_tag(project.name, "1", "manifest_sha256", sha256)
    champion = deciding.standing_champion(project.name, LOG)
    assert (champion.version, champion.files) == (1, None)
    assert "registered by an earlier version of this project; register it" in champion.absent


@pytest.mark.tensorflow
def test_golden_batch_is_eight_holdout_patches_from_low_to_high(project):
    register.main()
    version = registry.load_version(project.name, 1)
    assert version.golden.patches.shape == (8, 96, 96, 3)
    probabilities = 1 / (1 + np.exp(-version.golden.logits))
    assert probabilities[0] == pytest.approx(project.rows["probability"].min(), abs=1e-6)
    assert probabilities[-1] == pytest.approx(project.rows["probability"].max(), abs=1e-6)
