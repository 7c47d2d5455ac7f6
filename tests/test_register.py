"""The stage ``register``: who becomes champion, and who predicts."""

import json
import logging
import threading
import time

import numpy as np
import pandas as pd
import pytest

from src import evaluate, paths, register
from src.data.dataset import OtherData, SplitKind
from src.evaluation import promotion
from src.evaluation.comparison import Champion, Comparison
from src.evaluation.intervals import Difference
from src.evaluation.looks import Look
from src.model import scorer
from src.system.durable import read_json, write_json
from src.system.errors import ProjectError, VerificationError
from src.tracking import promotions, registry, runs
from src.tracking.looks import archive_digest, final_weights_sha256, model_key, take_look
from tests.evaluated import labelled_patches, write_evaluation
from tests.evaluation.test_comparison import fake_version
from tests.tracking.support import EVIDENCE, final_folder

pytest_plugins = ("tests.tracking.fixtures", "tests.fixtures")

LOG = logging.getLogger("hcd.test")
BETTER, WORSE = Difference(0.05, 0.02, 0.08, 0.975), Difference(-0.1, -0.2, 0, 0.975)
EQUAL, UNSURE = Difference(0, 0, 0, 0.975), Difference(0.01, -0.02, 0.04, 0.975)


def comparison(difference, **changes):
    counted = {"n_patches": 10, "n_excluded": 0, "n_groups": {"normal": 5, "tumour": 5}}
    return Comparison(1, difference=difference, **{**counted, **changes})


def registration(to_baseline, compared, *, absent=None, is_chosen=False, rejected=None):
    """With champion 1, unless there is nothing to compare with."""
    champion = Champion() if compared is None else Champion(1, fake_version(1))
    if absent is not None:
        champion = Champion(1, absent=absent)
    impossible = None if compared is None else compared.impossible
    evidence = promotion.Evidence(
        to_baseline=to_baseline,
        to_champion=None if compared is None else compared.difference,
        margin=0.0,
        n_groups={"normal": 5, "tumour": 5} if compared is None else compared.n_groups,
        min_groups=2,
        look=Look(1, "0" * 64),
        reload_error=0.0,
        golden_error=0.0,
        rejected=rejected,
        no_champion=champion.absent,
        not_judged={} if impossible is None else {"not_worse_than_champion": impossible},
    )
    decision = promotion.decide(evidence)
    return register.registration_of(
        fake_version(2), champion, evidence, compared, decision, is_chosen=is_chosen
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


def test_champion_stays_where_it_can_not_be_compared():
    """None would read as 'no champion' and promote anybody."""
    compared = comparison(None, impossible="saw every holdout group in training")
    assert outcome(BETTER, compared) == (False, 1, 1, "champion")


def test_champion_that_can_not_be_verified_is_replaced():
    assert outcome(BETTER, None, absent="broken") == (True, 2, 2, "champion")
    assert outcome(UNSURE, None, absent="broken") == (False, None, 2, "unpromoted")


def test_rows_follow_the_ids_not_the_split():
    """predictions.parquet and the split may be sorted differently."""
    split = labelled_patches(["b", "a", "c"], rows=[7, 5, 9])
    ids = pd.Series(["c", "a"])
    assert scorer.rows_of(ids, split).tolist() == [9, 5]
    with pytest.raises(ProjectError, match=r"1 holdout ids .* first: z"):
        scorer.rows_of(pd.Series(["a", "z"]), split)


def predicts(registration):
    chosen = registration["predict_with"]
    return chosen["version"], chosen["role"]


def log_of(name):
    return promotions.read_log(name)


@pytest.mark.tensorflow
def test_first_version_that_beats_the_baseline_is_champion(project, store):
    register.main()
    registration = read_json(paths.REGISTRATION)
    assert registration["promoted"] is True
    assert predicts(registration) == (1, "champion")
    assert registration["challenger"]["run_id"] == project.run_id
    assert registration["challenger"]["auroc"] == 1.0
    assert registry.aliases(project.name) == {"champion": 1, "challenger": 1}
    evidence = registry.find_version(project.name, 1).evidence
    assert evidence["metrics"] == read_json(paths.METRICS)
    assert evidence["data"] == {"train": "f" * 64}
    tags = store.client.get_model_version(project.name, "1").tags
    assert tags["decision"].startswith("promoted: every file is the one")
    assert set(json.loads(tags["rules"]).values()) == {True}
    evidence_file = promotions.evidence_file(project.name, tags["evidence_sha256"])
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
    assert read_json(paths.REGISTRATION)["challenger"]["look"]["number"] == 1
    assert len(log_of(project.name)) == 2


@pytest.mark.tensorflow
@pytest.mark.usefixtures("project")
def test_another_model_on_the_same_holdout_is_judged_more_strictly(keras_file):
    """Catches a gate that is passed by trying often enough, and one that a version loses because
    it is registered or judged again."""
    register.main()
    model = read_json(paths.FINETUNED_MODEL / "fit.json")
    write_json(paths.FINETUNED_MODEL / "fit.json", {**model, "final_weights_sha256": "e" * 64})
    final_folder(paths.FINAL_MODEL, keras_file, seen_ids=["9" * 40])
    for _ in range(2):
        register.main()
        challenger = read_json(paths.REGISTRATION)["challenger"]
        assert (challenger["version"], challenger["look"]["number"]) == (2, 2)
        assert challenger["to_baseline"]["confidence"] == pytest.approx(1 - 0.05 / 6)
        reason = reason_of("beats_baseline")
        assert "(99.17 % interval " in reason
        assert reason.endswith("; model 2 judged on this archive")


def reason_of(rule):
    (found,) = (row for row in read_json(paths.REGISTRATION)["rules"] if row["rule"] == rule)
    return found["reason"]


@pytest.mark.tensorflow
@pytest.mark.parametrize(
    ("beats", "n_groups", "begins"),
    [
        (True, 10, "beats the colour baseline"),
        (False, 10, "does not beat the colour baseline"),
        (False, 2, "can't be compared with the colour baseline: an interval needs at least 3"),
    ],
)
def test_report_run_and_gate_say_the_same_of_the_baseline(
    project, store, monkeypatch, beats, n_groups, begins
):
    """Catches two intervals of one comparison: a report that promises what the gate then refuses.

    What ``evaluate`` does after scoring, then ``register``.
    """
    rows = project.rows.assign(stain=None, group=[f"g{i * n_groups // 40}" for i in range(40)])
    for name in ("baseline_logistic", "baseline_trees"):
        rows[name] = rows["baseline_probability"]
    if not beats:
        rows["baseline_probability"] = rows["probability"] + np.tile([0.02, -0.02, -0.01, 0.01], 10)
    rows["baseline_logistic"] = rows["baseline_trees"] = rows["baseline_probability"]
    rows["logit"] = np.log(rows["probability"] / (1 - rows["probability"]))
    monkeypatch.setattr(evaluate, "split_kind", lambda: SplitKind(True, "slides"))
    predictions = evaluate.write_predictions(pd.concat([rows.assign(split="val"), rows]))
    params, digest = project.params.evaluate, archive_digest()
    key = model_key(final_weights_sha256(), tta=False)
    look = Look(take_look(project.run_id, digest, key), digest)
    point = evaluate.operating_point_on_val(predictions, params)
    report = evaluate.report_of(predictions, point, look, params)
    write_json(paths.METRICS, report)
    against = report["against_baseline"]
    tags = {"beats_baseline": str(against["beats"]).lower(), "against_baseline": against["text"]}
    runs.add_evaluation(project.run_id, report, {}, tags)
    register.main()
    text, tags = report["against_baseline"]["text"], store.client.get_run(project.run_id).data.tags
    assert text.startswith(begins)
    assert tags["against_baseline"] == text
    assert tags["beats_baseline"] == str(beats).lower()
    look_said = "; model 1 judged on this archive" if "confidence" in against else ""
    assert reason_of("beats_baseline") == text + look_said
    assert read_json(paths.REGISTRATION)["promoted"] is beats


@pytest.mark.tensorflow
def test_model_of_another_split_or_data_is_not_registered(project, monkeypatch):
    """Catches a leaked holdout: split anew, evaluated again, and judged on patches it knows."""
    monkeypatch.setattr(register, "start_scoring", lambda _: pytest.fail("TensorFlow was started"))
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
    write_evaluation(project.rows.assign(baseline_probability=project.rows["probability"]))
    register.main()
    said = {"decision": "promoted against the rules: checked by hand"}
    version = registry.find_version(project.name, 1)
    promotions.promote(
        version, expected=None, document={}, said=said, action="promote", why="x", forced=True
    )
    before = registry.find_version(project.name, 1).tags
    register.main()
    assert predicts(read_json(paths.REGISTRATION)) == (1, "champion")
    assert registry.find_version(project.name, 1).tags == before


def test_two_at_once_decide_one_after_the_other(tmp_path, monkeypatch):
    """Else both compare with the same champion, and the later alias wins unseen."""
    inside, most = [], []

    def decide():
        with promotions.one_at_a_time("m"):
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.1)
            inside.pop()

    monkeypatch.setattr(paths, "TRACKING_LOCK", tmp_path / "tracking" / "tracking.lock")
    threads = [threading.Thread(target=decide) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1, 1, 1]


@pytest.mark.tensorflow
def test_not_better_than_colour_stays_challenger(project):
    write_evaluation(project.rows.assign(baseline_probability=project.rows["probability"]))
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
    assert registration["challenger"]["look"]["number"] == 1  # other files, the same weights
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
        evidence={**EVIDENCE, "final_weights_sha256": weights},
        golden=(batch, scorer.logits_of(model, batch)),
    )
    promotions.move_alias(
        project.name, "champion", champion, expected=None, action="register", why="the first"
    )
    fit = read_json(paths.FINETUNED_MODEL / "fit.json")
    write_json(paths.FINETUNED_MODEL / "fit.json", {**fit, "final_weights_sha256": "f" * 64})
    register.main()
    registration = read_json(paths.REGISTRATION)
    compared = registration["champion"]
    assert compared["auroc"] == pytest.approx(1 - compared["challenger_auroc"])
    assert compared["difference"]["value"] > 0.8
    assert predicts(registration) == (2, "champion")


@pytest.mark.tensorflow
def test_reloaded_version_must_give_the_probabilities_of_evaluate(project):
    """A registered model that isn't the one evaluated would be promoted by the other's figures."""
    rows = project.rows
    rows["probability"] = rows["probability"] + 2e-4
    write_evaluation(rows)
    with pytest.raises(VerificationError, match=r"failed: .* differ by up to 0\.0002"):
        register.main()
    assert registry.aliases(project.name) == {}
    assert not paths.REGISTRATION.exists()


@pytest.mark.tensorflow
def test_champion_whose_files_are_gone_does_not_block(project, keras_file):
    register.main()
    (registry.find_version(project.name, 1).folder / "data/model.keras").unlink()
    final_folder(paths.FINAL_MODEL, keras_file, seen_ids=["9" * 40])
    register.main()
    registration = read_json(paths.REGISTRATION)
    assert predicts(registration) == (2, "champion")
    assert "champion version 1 can't be verified" in registration["reasons"][4]
    assert "champion version 1 can't be verified" in log_of(project.name)[-1].why


@pytest.mark.tensorflow
def test_challenger_that_does_not_give_its_golden_logits_gets_no_alias(project, monkeypatch):
    """Catches a version that only seems to be the model: other software, swapped weights."""
    golden_error = scorer.Scorer.golden_error
    monkeypatch.setattr(scorer.Scorer, "golden_error", lambda self: golden_error(self) + 2e-3)
    with pytest.raises(VerificationError, match=r"failed: .* logits differ by up to 0\.002"):
        register.main()
    assert registry.aliases(project.name) == {}
    (entry,) = registry.versions(project.name)
    assert entry.tags["decision"].startswith("not promoted: model verification failed")


@pytest.mark.tensorflow
def test_golden_batch_is_eight_holdout_patches_from_low_to_high(project):
    register.main()
    patches, logits = registry.find_version(project.name, 1).golden
    assert patches.shape == (8, 96, 96, 3)
    probabilities = 1 / (1 + np.exp(-logits))
    assert probabilities[0] == pytest.approx(project.rows["probability"].min(), abs=1e-6)
    assert probabilities[-1] == pytest.approx(project.rows["probability"].max(), abs=1e-6)
