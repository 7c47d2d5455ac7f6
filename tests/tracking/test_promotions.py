"""Promotions: logged, decided against what is still true, one at a time, and rolled back."""

import subprocess
import sys
import time

import pytest

from src import paths
from src.system.durable import read_json, sha256_file
from src.system.errors import ProjectError, VerificationError
from src.tracking import promotions, registry, runs
from src.tracking.promotions import PromotionConflict, PromotionRefused, read_log
from tests.tracking.support import final_folder, record

pytest_plugins = ("tests.tracking.fixtures",)
pytestmark = pytest.mark.tensorflow

EVIDENCE = {"auroc": 0.9, "baseline_auroc": 0.8}
ROOT = paths.ROOT


@pytest.fixture
def name(store, tmp_path, keras_file, model_name):  # noqa: ARG001
    """A registered model with versions 1, 2 and 3."""
    with runs.training_run(record()) as run:
        pass
    for letter in "abc":
        final = final_folder(tmp_path / letter, keras_file, [letter * 40])
        registry.register_version(final, name=model_name, run_id=run.run_id, evidence=EVIDENCE)
    return model_name


def move(name, to, expected, action="promote", **more):
    version = None if to is None else registry.find_version(name, to)
    promotions.move_alias(
        name, "champion", version, expected=expected, action=action, why="better", **more
    )


def champion(name):
    return registry.aliases(name).get("champion")


def log_of(name):
    return [(m.action, m.alias, m.from_version, m.to_version) for m in read_log(name)]


def test_every_move_is_a_line_of_the_log(name):
    move(name, 1, None)
    move(name, 2, 1, forced=True, evidence_sha256="e" * 64)
    assert log_of(name) == [("promote", "champion", None, 1), ("promote", "champion", 1, 2)]
    last = read_log(name)[-1]
    assert (last.forced, last.evidence_sha256, last.why) == (True, "e" * 64, "better")
    assert last.who.count("@") == 1
    assert last.utc.endswith("+00:00")
    assert last.manifest_sha256 == registry.find_version(name, 2).manifest_sha256
    assert len(promotions.log_file(name).read_text().splitlines()) == 2
    assert champion(name) == 2


def test_alias_taken_away(name):
    move(name, 1, None)
    move(name, None, 1)
    assert registry.aliases(name) == {}
    assert log_of(name)[-1] == ("promote", "champion", 1, None)


def test_decision_against_another_champion_is_refused(name):
    move(name, 1, None)
    with pytest.raises(PromotionConflict, match=r"champion of .* is version 1, but .* nowhere"):
        move(name, 2, None)
    assert champion(name) == 1
    assert len(log_of(name)) == 1


def test_tampered_version_is_neither_logged_nor_promoted(name):
    folder = registry.find_version(name, 2).folder
    (folder / "evidence/seen_ids.txt").write_text("")
    with pytest.raises(VerificationError, match="sha256 mismatch"):
        move(name, 2, None)
    assert (champion(name), log_of(name)) == (None, [])


def test_move_that_was_broken_off_is_none(name, monkeypatch):
    """Killed between log line and alias: version 2 never was champion; nobody goes back to it."""
    move(name, 1, None)
    with monkeypatch.context() as patch:
        patch.setattr(promotions, "set_alias", lambda *_: sys.exit(137))
        with pytest.raises(SystemExit):
            move(name, 2, 1)
    assert champion(name) == 1
    assert [m.to_version for m in promotions.champion_moves(name)] == [1]
    move(name, 3, 1)
    assert [m.to_version for m in promotions.champion_moves(name)] == [1, 3]
    assert promotions.champion_before(name, 3).number == 1


def test_rollbacks_go_back_step_by_step(name):
    """Catches a second rollback that undoes the first."""
    for to, expected in ((1, None), (2, 1), (3, 2)):
        move(name, to, expected)
    for present, before in ((3, 2), (2, 1)):
        target = promotions.champion_before(name, present)
        assert target.number == before
        promotions.roll_back(target, expected=present, why="wrong")
    assert registry.find_version(name, 3).rejected == "rolled back: wrong"
    with pytest.raises(PromotionRefused, match="knows no champion before version 1"):
        promotions.champion_before(name, 1)


def test_champion_again_after_another_one_is_a_step_of_its_own(name):
    """1, 2, 1: the champion before the present 1 is 2."""
    for to, expected in ((1, None), (2, 1), (1, 2)):
        move(name, to, expected)
    assert promotions.champions(name)[-2][0] == 2
    assert promotions.champion_before(name, 1).number == 2


def test_alias_moved_in_mlflow_itself_does_not_lead_back_to_the_same_version(store, name):
    move(name, 1, None)
    move(name, 2, 1)
    store.client.set_registered_model_alias(name, "champion", "3")
    assert promotions.champion_before(name, 3).number == 2


@pytest.mark.parametrize("damage", [b"{", b'{"who": "x"}', b"\xff"])
def test_damaged_line_is_named(name, damage):
    """Catches a history that silently lacks a promotion."""
    move(name, 1, None)
    file = promotions.log_file(name)
    file.write_bytes(file.read_bytes() + damage + b"\n")
    with pytest.raises(ProjectError, match=rf"line 2 of mlruns/promotions/{name}/log.jsonl can't"):
        read_log(name)


def test_rejected_version_loses_its_alias_and_the_line_stays_one(name):
    version = registry.find_version(name, 2)
    promotions.make_challenger(version)
    promotions.reject(version, why="ugly\ncolours\u2028here")
    assert registry.aliases(name) == {}
    assert log_of(name)[-1] == ("reject", "challenger", 2, None)
    assert read_log(name)[-1].why == "ugly colours here"
    promotions.reject(registry.find_version(name, 3), why="too")
    assert log_of(name)[-1] == ("reject", "", 3, 3)


def test_evidence_lies_under_its_digest(name):
    sha256 = promotions.store_evidence(name, {"rules": [1]})
    file = promotions.evidence_file(name, sha256)
    assert sha256_file(file) == sha256
    assert read_json(file) == {"rules": [1]}


PROMOTE = """
import sys, time
from pathlib import Path
import pytest
from tests.tracking.support import point_paths_at
root, name, version, ready, go = sys.argv[1:]
point_paths_at(Path(root), pytest.MonkeyPatch())
from src.system.errors import ProjectError
from src.tracking import promotions, registry
version, present = registry.find_version(name, int(version)), registry.champion_of(name).number
Path(ready).touch()
while not Path(go).exists():
    time.sleep(0.01)
try:
    with promotions.one_at_a_time(name):
        promotions.move_alias(
            name, "champion", version, expected=present, action="promote", why="x"
        )
    print("won")
except ProjectError as error:
    print(error)
"""


def test_two_processes_at_once_one_wins_and_the_other_says_so(name, store_root, tmp_path):
    """Both decide against champion 1; without the comparison the later one would win unseen."""
    move(name, 1, None)
    go = tmp_path / "go"
    started = []
    for version in ("2", "3"):
        ready = tmp_path / f"ready{version}"
        command = [sys.executable, "-W", "ignore", "-c", PROMOTE, str(store_root), name, version]
        process = subprocess.Popen(
            [*command, str(ready), str(go)], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        started.append((version, ready, process))
    while not all(ready.exists() or process.poll() is not None for _, ready, process in started):
        time.sleep(0.05)
    go.touch()
    said = {version: process.communicate(timeout=120)[0] for version, _, process in started}
    (winner,) = [version for version, text in said.items() if text == "won\n"]
    (refused,) = [text for text in said.values() if text != "won\n"]
    assert f"champion of {name} is version {winner}, but this was decided against version 1" in (
        refused
    )
    assert champion(name) == int(winner)
    assert log_of(name)[1:] == [("promote", "champion", 1, int(winner))]
