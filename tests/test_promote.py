"""The command ``promote``: evidence decides, a person may overrule it, and all stays visible."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from src import paths, promote
from src.evaluation.promotion import PROMOTION_RULES
from src.model import scorer
from src.model.inference import load_classifier
from src.promote import OptionError
from src.register import golden_rows
from src.system.durable import MANIFEST, read_json, sha256_file, write_json, write_manifest
from src.system.errors import VerificationError
from src.tracking import promotions, registry
from src.tracking.promotions import PromotionConflict, PromotionRefused, read_log
from src.tracking.store import TrackingError
from tests.tracking.support import EVIDENCE, final_folder

pytest_plugins = ("tests.tracking.fixtures", "tests.fixtures")
pytestmark = pytest.mark.tensorflow


@pytest.fixture(scope="session")
def models(keras_file, tmp_path_factory) -> dict[str, Path]:
    """``good`` ranks the holdout nearly perfectly, ``bad`` the wrong way round."""
    import keras

    folder = tmp_path_factory.mktemp("models")
    found = {"good": keras_file, "same": keras_file}
    model = keras.saving.load_model(keras_file)
    for weight in model.weights:
        weight.assign(-weight.numpy())
    model.save(folder / "bad.keras")
    return {**found, "bad": folder / "bad.keras"}


@pytest.fixture
def register(project, models, tmp_path):
    """Register versions 1, 2, … of the named models; the first is champion."""
    chosen = project.pixels[golden_rows(project.rows["probability"].to_numpy())]

    def register(*names: str, seen_ids=(), seen=()) -> None:
        """``seen_ids`` of all versions, ``seen`` of each its own."""
        for number, name in enumerate(names):
            ids = [*seen_ids, *(seen[number] if seen else ()), f"f{number:039d}"]
            final = final_folder(tmp_path / f"{number}", models[name], ids)
            model = load_classifier(final)
            registry.register_version(
                final,
                name=project.name,
                run_id=project.run_id,
                evidence={**EVIDENCE, "final_weights_sha256": sha256_file(models[name])},
                golden=(chosen, scorer.logits_of(model, chosen)),
            )
        move(project.name, 1, None, action="register", why="the first")

    return register


@pytest.fixture
def run(project):  # noqa: ARG001
    """Run the command as typed, in this process."""
    import typer

    app = typer.Typer()
    app.command()(promote.main)

    def run(*arguments: str) -> str:
        done = CliRunner().invoke(app, list(arguments), catch_exceptions=True)
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        assert done.exit_code == 0, done.output
        return done.output

    return run


def move(name, to, expected, *, action="promote", why="test"):
    version = None if to is None else registry.find_version(name, to)
    promotions.move_alias(name, "champion", version, expected=expected, action=action, why=why)


def last(project):
    return read_log(project.name)[-1]


def champion(project):
    return registry.aliases(project.name).get("champion")


def tags_of(project, number):
    return registry.find_version(project.name, number).tags


def test_better_version_is_promoted_and_the_evidence_kept(project, register, run):
    register("bad", "good")
    output = run("--version", "2")
    assert champion(project) == 2
    entry = last(project)
    assert (entry.action, entry.from_version, entry.to_version) == ("promote", 1, 2)
    assert (entry.forced, entry.why) == (False, "by the rules")
    document = read_json(promotions.evidence_file(project.name, entry.evidence_sha256))
    assert [rule["rule"] for rule in document["rules"]] == list(PROMOTION_RULES)
    assert document["decided_against"] == 1
    assert document["comparison"]["n_patches"] == 40
    tags = tags_of(project, 2)
    assert tags["decision"].startswith("promoted: ")
    assert set(json.loads(tags["rules"]).values()) == {True}
    for rule in PROMOTION_RULES:
        assert rule in output


@pytest.mark.parametrize(
    ("challenger", "verb"), [("bad", "may be worse"), ("same", "may be worse")]
)
def test_worse_and_equal_versions_are_refused(project, register, run, challenger, verb):
    register("good", challenger)
    with pytest.raises(PromotionRefused, match=f"version 2 of .* is not promoted: .*{verb}"):
        run("--version", "2")
    assert champion(project) == 1
    assert tags_of(project, 2)["decision"].startswith("not promoted")
    assert last(project).to_version == 1


def test_equal_version_is_promoted_where_the_margin_allows(project, register, run, monkeypatch):
    register("good", "same")
    changed = project.params.register_.model_copy(update={"margin": 0.01})
    params = project.params.model_copy(update={"register_": changed})
    monkeypatch.setattr(promote, "load_params", lambda: params)
    run("--version", "2")
    assert champion(project) == 2


def test_patches_either_was_trained_on_are_left_out(project, register, run):
    """Catches a challenger, or a champion, that is judged on slides it knows by heart.

    Of 10 groups of 4 patches the challenger saw the first 3, the champion the 2 after them: a patch
    of each is enough.
    """
    ids = project.rows["id"].tolist()
    register("bad", "good", seen=(ids[12:20:4], ids[:12:4]))
    run("--version", "2")
    sha256 = last(project).evidence_sha256
    compared = read_json(promotions.evidence_file(project.name, sha256))["comparison"]
    assert (compared["n_patches"], compared["n_excluded"]) == (20, 8)
    assert compared["n_groups"] == {"normal": 5, "tumour": 5}


def test_trained_on_every_holdout_group_can_not_be_judged(project, register, run):
    register("bad", "good", seen_ids=project.rows["id"].tolist())
    with pytest.raises(PromotionRefused, match="it saw every holdout group in training"):
        run("--version", "2")


def folder_of(project, version) -> Path:
    return registry.find_version(project.name, version).folder


def truncate(folder, store, name):  # noqa: ARG001
    model = folder / "data/model.keras"
    model.write_bytes(model.read_bytes()[:-100])


def swap_weights(folder, store, name):  # noqa: ARG001
    other = registry.find_version(name, 1).folder
    (folder / "data/model.keras").write_bytes((other / "data/model.keras").read_bytes())


def drop_manifest(folder, store, name):  # noqa: ARG001
    (folder / MANIFEST).unlink()


def foreign_loader(folder, store, name):  # noqa: ARG001
    mlmodel = folder / "MLmodel"
    mlmodel.write_text(mlmodel.read_text().replace("src.serve", "os"))


def golden_off(folder, store, name):
    """By somebody who can write the registry as well: all digests match."""
    patches, logits = registry.find_version(name, 2).golden
    np.savez(folder / "evidence/golden.npz", patches=patches, logits=logits + 0.01)
    write_manifest(folder)
    store.client.set_model_version_tag(name, "2", "manifest_sha256", sha256_file(folder / MANIFEST))


@pytest.mark.parametrize("force", [(), ("--force", "--why", "because")])
@pytest.mark.parametrize(
    ("tamper", "core"),
    [
        (truncate, "sha256 mismatch"),
        (swap_weights, "sha256 mismatch"),
        (drop_manifest, "manifest missing"),
        (foreign_loader, "sha256 mismatch"),
        (golden_off, r"does not reproduce its golden batch: logits differ by up to 0\.01"),
    ],
)
def test_row_54_tampered_version_is_refused_even_by_force(
    project, store, register, run, tamper, core, force
):
    register("bad", "good")
    tamper(folder_of(project, 2), store, project.name)
    with pytest.raises(
        (VerificationError, PromotionRefused), match=f"model verification failed: .*{core}"
    ):
        run("--version", "2", *force)
    assert champion(project) == 1


def test_forced_promotion_stays_visible_everywhere(project, register, run):
    register("good", "bad")
    run("--version", "2", "--force", "--why", "the other one is unfair")
    entry = last(project)
    assert (entry.forced, entry.why) == (True, "the other one is unfair")
    tags = tags_of(project, 2)
    assert (tags["forced"], tags["forced_why"]) == ("true", "the other one is unfair")
    assert tags["decision"].startswith("promoted against the rules")
    table, _, history = run().partition("Promotion log")
    assert "forced" in table
    assert "rejected" in table
    assert "promote, forced" in " ".join(history.split())
    assert "the other one is unfair" in " ".join(history.split())
    # the replaced one isn't put back by the rules it won by
    with pytest.raises(PromotionRefused, match="was rejected: replaced by force with version 2"):
        run("--version", "1")


def test_rollback_goes_back_step_by_step_and_rejects_what_it_leaves(project, register, run):
    register("bad", "good", "same")
    run("--version", "2")
    run("--version", "3", "--force", "--why", "try")
    run("--rollback", "--why", "wrong on scanner B")
    assert champion(project) == 2
    assert last(project).why == "wrong on scanner B"
    assert "rolled back" in tags_of(project, 3)["rejected"]
    assert "rejected" not in tags_of(project, 2)
    run("--rollback")
    assert champion(project) == 1
    with pytest.raises(PromotionRefused, match="knows no champion before version 1"):
        run("--rollback")


def test_rollback_does_not_undo_what_a_person_rejected(project, register, run):
    """Catches any tag 'rejected' dropped from the target, whatever it says."""
    register("bad", "good")
    run("--version", "2")
    run("--reject", "1", "--why", "mislabelled slide")
    with pytest.raises(PromotionRefused, match=r"was rejected: mislabelled slide; choose another"):
        run("--rollback")
    assert champion(project) == 2
    assert tags_of(project, 1)["rejected"] == "mislabelled slide"


def test_nan_is_refused_in_one_line(project, register, run, monkeypatch):
    """Catches a traceback: NaN is no JSON, and no score."""
    register("bad", "good")
    monkeypatch.setattr(scorer, "logits_of", lambda *_: np.full(8, np.nan))
    with pytest.raises(PromotionRefused, match=r"does not reproduce its golden batch: .* nan"):
        run("--version", "2")
    assert "not promoted" in tags_of(project, 2)["decision"]


def test_rollback_does_not_take_a_namesake_for_the_old_champion(project, store, register, run):
    """mlflow.db made anew: version 1 is another model, the log still speaks of the old one."""
    register("bad", "good")
    run("--version", "2")
    store.client.set_model_version_tag(project.name, "1", "manifest_sha256", "0" * 64)
    with pytest.raises(PromotionRefused, match="is not the one that was champion"):
        run("--rollback")


def test_rollback_from_a_broken_champion(project, store, register, run):
    """The way out when the champion's files are damaged."""
    register("bad", "good")
    run("--version", "2")
    truncate(folder_of(project, 2), store, project.name)
    assert "BROKEN" in run()
    run("--rollback")
    assert champion(project) == 1


def test_broken_champion_is_replaced_by_a_version_that_stands(project, store, register, run):
    register("good", "same")
    truncate(folder_of(project, 1), store, project.name)
    output = run("--version", "2")
    assert "champion version 1 can't be verified" in " ".join(output.split())
    assert champion(project) == 2


def test_rejected_version_is_not_promoted_and_loses_its_alias(project, register, run):
    register("bad", "good")
    promotions.make_challenger(registry.find_version(project.name, 2))
    run("--reject", "2", "--why", "mislabelled slide")
    assert registry.aliases(project.name) == {"champion": 1}
    assert last(project).action == "reject"
    with pytest.raises(PromotionRefused, match="was rejected: mislabelled slide"):
        run("--version", "2")
    run("--version", "2", "--force", "--why", "slide was right after all")
    assert "rejected" not in tags_of(project, 2)


def test_champion_is_not_rejected_but_rolled_back(register, run):
    register("bad")
    with pytest.raises(PromotionRefused, match=r"is champion; run: .* --rollback"):
        run("--reject", "1", "--why", "x")


def test_promotion_in_between_is_noticed(project, register, run, monkeypatch):
    """Catches a decision against a champion that is none any more."""
    register("bad", "good", "same")
    decide = promote.decide

    def slow_decision(evidence):
        move(project.name, 3, 1, why="faster")
        return decide(evidence)

    monkeypatch.setattr(promote, "decide", slow_decision)
    with pytest.raises(PromotionConflict, match="is version 3, but this was decided against"):
        run("--version", "2")
    assert champion(project) == 3


def test_listing_shows_versions_evidence_and_history(register, run):
    register("bad", "good")
    run("--version", "2")
    output = " ".join(run().split())
    assert "Versions of" in output
    assert "7 of 7 hold" in output
    assert "Promotion log" in output
    assert "by the rules" in output
    assert "BROKEN" not in output
    # version 2 was, version 1 never
    assert "1 models were judged on this archive; the next one is at 99.17 % confidence" in output


def test_champion_moved_outside_is_shown(project, store, register, run):
    """Catches a click in MLflow's page that nobody sees in the history."""
    register("bad", "good")
    assert "moved outside" not in run()
    store.client.set_registered_model_alias(project.name, "champion", "2")
    assert "the champion was moved outside this project" in " ".join(run().split())


def test_submission_by_another_version_is_said(register, run, caplog):
    register("bad", "good")
    write_json(paths.REGISTRATION, {"predict_with": {"version": 1, "role": "champion"}})
    with caplog.at_level("INFO", logger="hcd"):
        logging.getLogger("hcd").propagate = True
        run("--version", "2")
    assert "predict still uses version 1; run: dvc repro" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "core"),
    [
        (("--version", "1", "--rollback"), "exclude each other"),
        (("--force",), "--force goes with --version"),
        (("--version", "1", "--force"), "need a reason"),
        (("--reject", "1"), "need a reason"),
        (("--version", "1", "--force", "--why", " "), "need a reason"),
    ],
)
def test_what_does_not_go_together_is_one_line(run, arguments, core):
    with pytest.raises(OptionError, match=core):
        run(*arguments)


def test_unknown_version_and_empty_registry(register, run):
    with pytest.raises(PromotionRefused, match=r"no version of .* is registered"):
        run()
    register("good")
    with pytest.raises(TrackingError, match="registry has no version 9"):
        run("--version", "9")
