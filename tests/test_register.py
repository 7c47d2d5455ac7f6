"""The stage ``register``: who becomes champion, who predicts, and on which patches they meet."""

import json
import logging
import threading
import time
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from src import deciding, evaluate, paths, promote, register
from src.data.dataset import OtherData, SplitKind
from src.deciding import Champion, Comparison
from src.evaluation import promotion
from src.evaluation.intervals import Difference
from src.evaluation.looks import Look, holdout_sha256
from src.params import load_params
from src.system.durable import MANIFEST, read_json, sha256_file, write_json, write_manifest
from src.system.errors import ProjectError
from src.tracking import aliases, golden, registry, runs
from src.tracking.logged_models import VerificationError
from src.tracking.looks import take_look
from tests.evaluated import holdout, labelled_patches, write_evaluation
from tests.tracking.support import EVIDENCE, final_folder

pytest_plugins = ("tests.tracking.fixtures", "tests.fixtures")

LOG = logging.getLogger("hcd.test")
BETTER, WORSE = Difference(0.05, 0.02, 0.08, 0.975), Difference(-0.1, -0.2, 0, 0.975)
EQUAL, UNSURE = Difference(0, 0, 0, 0.975), Difference(0.01, -0.02, 0.04, 0.975)
HERE = "f" * 64


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
        look=Look(1, "0" * 64),
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
    compared = comparison(None, impossible="saw every holdout group in training")
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


@pytest.fixture
def archive_here(tmp_path, monkeypatch):
    """The archive's digest is HERE."""
    monkeypatch.setattr(paths, "INGEST_REPORT", tmp_path / "report.json")
    write_json(paths.INGEST_REPORT, {"digests": {"train": HERE}})


def fake_version(number=1, *, trained_on=HERE, **seen):
    """Never saw anything but ``seen`` (``ids``, ``sha256``, ``slides``) of the archive."""
    saw = {f"seen_{key}": frozenset(seen.get(key, ())) for key in ("ids", "sha256", "slides")}
    return SimpleNamespace(
        name="m",
        version=number,
        run_id="run",
        model=None,
        golden=None,
        model_sha256=f"m{number}",
        operating_point={"tta": False},
        evidence={"final_weights_sha256": f"w{number}", "data": {"train": trained_on}},
        tags={},
        **saw,
    )


def compared_with(champion, rows, probabilities):
    return deciding.compare(champion, rows, probabilities, 0.95)


def knows_by_heart(rows, known):
    """Probabilities of a model that ranks the ``known`` perfectly and the others badly."""
    badly = np.random.default_rng(5).random(len(rows)) - 0.5 * rows["label"]
    return np.where(known, rows["label"], badly)


def test_patches_the_champion_was_trained_on_count_for_neither(archive_here):  # noqa: ARG001
    """Catches a champion that wins by what it learned by heart."""
    rows = holdout()
    probabilities = knows_by_heart(rows, np.arange(40) < 20)
    compared = compared_with(fake_version(ids=rows["id"][:20]), rows, probabilities)
    assert (compared.n_patches, compared.n_excluded) == (20, 20)
    assert compared.n_groups == {"normal": 5, "tumour": 5}
    assert compared.challenger_auroc == 1.0
    assert compared.auroc < 0.5
    assert compared.difference.value == pytest.approx(1 - compared.auroc)


def test_patches_the_champion_saw_under_other_ids_count_for_neither(archive_here):  # noqa: ARG001
    """PCam's ids are made from split and row: Kaggle's archive has the same pixels, other ids."""
    rows = holdout()
    probabilities = knows_by_heart(rows, np.arange(40) < 20)
    compared = compared_with(fake_version(sha256=rows["sha256"][:20]), rows, probabilities)
    assert (compared.n_patches, compared.n_excluded) == (20, 20)
    assert compared.auroc < 0.5


@pytest.mark.parametrize("seen", [{"ids": [0, 4]}, {"sha256": [3, 7]}], ids=str)
def test_one_patch_it_saw_stands_for_its_whole_group(archive_here, seen):  # noqa: ARG001
    """Catches slides that a model knows, judged by those of their patches that are new to it."""
    rows = holdout()
    values = {key: rows[key.removesuffix("s")].iloc[at] for key, at in seen.items()}
    found = deciding.unseen(rows, fake_version(**values))
    assert set(rows["group"]) - set(found["group"]) == {"g0", "g1"}
    assert found["id"].tolist() == rows["id"][8:].tolist()


def test_slides_it_saw_in_another_archive_are_left_out(archive_here):  # noqa: ARG001
    """Catches a model of a larger archive, which was trained on these slides but cut them into
    other patches: no id and no pixel gives it away."""
    slides = [f"slide {i // 2}" for i in range(40)]  # two a group
    rows = holdout().assign(slide=slides)
    version = fake_version(trained_on="another", slides=["slide 1", "slide 77"])
    found = deciding.unseen(rows, version)
    assert found["group"].unique().tolist() == [f"g{i}" for i in range(1, 10)]


@pytest.mark.parametrize(
    ("named_here", "named_there"), [(False, False), (True, False), (False, True)]
)
def test_other_archive_without_slide_names_can_not_be_judged(
    archive_here,  # noqa: ARG001
    named_here,
    named_there,
):
    """Catches a model that is taken for new to slides nobody can say it never saw."""
    rows = holdout().assign(slide=holdout()["group"] if named_here else None)
    version = fake_version(2, trained_on="another", slides=["g0"] if named_there else ())
    with pytest.raises(deciding.IncomparableGroups, match="can't tell what version 2 saw"):
        deciding.unseen(rows, version)


def test_one_patch_without_a_slide_name_is_no_archive_with_names(archive_here):  # noqa: ARG001
    """Catches the unnamed slides of a half-named archive taken for unseen."""
    rows = holdout()
    rows.loc[rows.index[1:], "slide"] = rows["group"]
    with pytest.raises(deciding.IncomparableGroups):
        deciding.unseen(rows, fake_version(trained_on="another", slides=["g0"]))


@pytest.fixture
def gathered(archive_here, monkeypatch):  # noqa: ARG001
    """Judge fake version 2 beside fake version 1, which ranks the holdout badly."""
    monkeypatch.setattr(deciding, "reload_error", lambda *_: 0.0)
    monkeypatch.setattr("src.deciding.golden_error", lambda *_: 0.0)
    rows = holdout()
    badly = pd.Series(knows_by_heart(rows, False), index=rows["id"])
    monkeypatch.setattr(deciding, "score", lambda _, ids, *__: badly[ids].to_numpy())

    def gathered(look, challenger, champion):
        monkeypatch.setattr("src.tracking.looks.take_look", lambda *_: look)
        beside = Champion(champion.version, champion)
        return deciding.gather(challenger, beside, rows, load_params(), is_evaluated=True, log=LOG)

    return gathered


def test_challenger_of_another_archive_fails_both_comparisons(gathered):
    """Catches 'no champion to compare with' or a comparison on slides that it may know."""
    challenger = fake_version(2, trained_on="another")
    decision = promotion.decide(gathered(1, challenger, fake_version())[0])
    for rule in ("beats_baseline", "not_worse_than_champion"):
        assert not decision.checks[rule].held
        reason = decision.checks[rule].reason
        assert reason.startswith("can't tell what version 2 saw: it was trained on another archive")
        assert "without slide names on both sides" in reason


def test_champion_of_another_archive_stays_and_says_why(gathered):
    """Catches a champion replaced on slides that it knows by heart, or that nobody compared."""
    evidence, compared = gathered(1, fake_version(2), fake_version(trained_on="another"))
    decision = promotion.decide(evidence)
    assert decision.checks["beats_baseline"].held
    check = decision.checks["not_worse_than_champion"]
    assert not check.held
    assert check.reason.startswith(
        "can't be compared with the champion, which stays: can't tell what version 1 saw"
    )
    assert (compared.n_patches, compared.n_excluded, compared.difference) == (0, 40, None)


@pytest.mark.parametrize(
    ("look", "confidence", "shown"), [(1, 0.975, 97.5), (3, 1 - 0.05 / 12, 99.58)]
)
def test_later_looks_are_decided_at_a_stricter_confidence(gathered, look, confidence, shown):
    """Catches the best of many models promoted at the error rate of one."""
    evidence, _ = gathered(look, fake_version(2), fake_version())
    decision = promotion.decide(evidence)
    for difference in (evidence.to_baseline, evidence.to_champion):
        assert difference.confidence == pytest.approx(confidence)
    for rule in ("beats_baseline", "not_worse_than_champion"):
        reason = decision.checks[rule].reason
        assert f"({shown} % interval " in reason
        assert reason.endswith(f"; model {look} judged on this holdout")
    assert decision.checks["beats_baseline"].value == evidence.to_baseline.low


def test_a_later_look_can_cost_the_verdict(gathered):
    """Catches a confidence that is shown, and not used."""
    low = [
        gathered(look, fake_version(2), fake_version())[0].to_baseline.low
        for look in (1, 2, 10, 1000)
    ]
    assert low[0] > 0 > low[-1]
    assert low == sorted(low, reverse=True)


def test_nothing_left_to_compare_on(archive_here):  # noqa: ARG001
    rows = holdout()
    compared = compared_with(fake_version(ids=rows["id"]), rows, np.zeros(40))
    assert (compared.n_patches, compared.n_excluded, compared.difference) == (0, 40, None)
    assert "saw every holdout group in training" in compared.impossible


def test_one_class_left_is_no_comparison(archive_here):  # noqa: ARG001
    rows = holdout()
    rows["group"] += np.where(rows["label"], "t", "n")
    seen = rows["id"][rows["label"] == 1]
    compared = compared_with(fake_version(ids=seen), rows, np.zeros(40))
    assert compared.difference is None
    assert "patches of both classes" in compared.impossible


def test_two_groups_left_are_no_comparison(archive_here):  # noqa: ARG001
    """Catches two slides that happen to agree taken for certainty."""
    rows = holdout()
    compared = compared_with(fake_version(ids=rows["id"][:32]), rows, np.zeros(40))
    assert (compared.n_patches, compared.difference) == (8, None)
    assert "needs at least 3 groups; got 2" in compared.impossible


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
    assert read_json(paths.REGISTRATION)["challenger"]["look"]["number"] == 1
    assert len(log_of(project.name)) == 2


@pytest.mark.tensorflow
def test_another_model_on_the_same_holdout_is_judged_more_strictly(project, keras_file):
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
        assert reason.endswith("; model 2 judged on this holdout")
    judged = [promote.judge(project.params, number, LOG).decision for number in (1, 2)]
    for number, decision in enumerate(judged, start=1):
        reason = decision.checks["beats_baseline"].reason
        assert reason.endswith(f"; model {number} judged on this holdout")


def reason_of(rule):
    (found,) = (row for row in read_json(paths.REGISTRATION)["rules"] if row["rule"] == rule)
    return found["reason"]


@pytest.mark.tensorflow
@pytest.mark.parametrize("beats", [True, False])
def test_report_run_and_gate_say_the_same_of_the_baseline(project, store, monkeypatch, beats):
    """Catches two intervals of one comparison: a report that promises what the gate then refuses.

    What ``evaluate`` does after scoring, then ``register``.
    """
    rows = project.rows.assign(stain=None)
    if not beats:
        rows["baseline_probability"] = rows["probability"] + np.tile([0.02, -0.02, -0.01, 0.01], 10)
    rows["baseline_logistic"] = rows["baseline_trees"] = rows["baseline_probability"]
    rows["logit"] = np.log(rows["probability"] / (1 - rows["probability"]))
    monkeypatch.setattr(evaluate, "split_kind", lambda: SplitKind(True, "slides"))
    predictions = evaluate.write_predictions(pd.concat([rows.assign(split="val"), rows]))
    params, digest = project.params.evaluate, holdout_sha256(rows)
    key = deciding.model_key(deciding.final_weights_sha256(), tta=False)
    look = Look(take_look(project.run_id, digest, key), digest)
    point = evaluate.operating_point_on_val(predictions, params)
    report = evaluate.report_of(predictions, point, look, params)
    write_json(paths.METRICS, report)
    against = report["against_baseline"]
    tags = {"beats_baseline": str(against["beats"]).lower(), "against_baseline": against["text"]}
    runs.add_evaluation(project.run_id, report, {}, tags)
    register.main()
    text, tags = report["against_baseline"]["text"], store.client.get_run(project.run_id).data.tags
    assert text.startswith("beats the" if beats else "does not beat the")
    assert tags["against_baseline"] == text
    assert tags["beats_baseline"] == str(beats).lower()
    assert reason_of("beats_baseline") == f"{text}; model 1 judged on this holdout"
    assert read_json(paths.REGISTRATION)["promoted"] is beats


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
    write_evaluation(project.rows.assign(baseline_probability=project.rows["probability"]))
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
        golden_batch=golden.Golden(batch, deciding.logits_of(model, batch)),
    )
    with aliases.alias_changes(project.name) as changes:
        changes.move("champion", champion, expected=None, action="register", why="the first")
    fit = read_json(paths.FINETUNED_MODEL / "fit.json")
    write_json(paths.FINETUNED_MODEL / "fit.json", {**fit, "final_weights_sha256": "f" * 64})
    register.main()
    registration = read_json(paths.REGISTRATION)
    compared = registration["champion"]
    assert compared["auroc"] == pytest.approx(1 - compared["challenger_auroc"])
    assert compared["difference"]["value"] > 0.8
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
    write_evaluation(rows)
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
