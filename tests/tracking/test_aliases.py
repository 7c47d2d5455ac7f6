"""Aliases: every move logged twice, decided against what still holds, one at a time."""

import subprocess
import sys
import time

import pytest

from src import paths
from src.system.durable import read_json, sha256_file
from src.tracking import aliases, registry, runs
from src.tracking.aliases import PromotionConflict, alias_changes, read_log
from src.tracking.logged_models import VerificationError
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
    with alias_changes(name) as changes:
        changes.move("champion", to, expected=expected, action=action, why="better", **more)


def log_of(name):
    return [(e.action, e.alias, e.from_version, e.to_version) for e in read_log(name).entries]


def log_file(name):
    return paths.PROMOTIONS / name / "log.jsonl"


def test_every_move_is_logged_in_file_and_registry(name):
    move(name, 1, None)
    move(name, 2, 1, forced=True, evidence_sha256="e" * 64)
    reading = read_log(name)
    assert reading.problems == []
    assert log_of(name) == [("promote", "champion", None, 1), ("promote", "champion", 1, 2)]
    last = reading.entries[-1]
    assert (last.forced, last.evidence_sha256, last.why) == (True, "e" * 64, "better")
    assert last.who.count("@") == 1
    assert last.utc.endswith("+00:00")
    assert last.manifest_sha256 == registry.version_tags(name, 2)["manifest_sha256"]
    lines = log_file(name).read_text().splitlines()
    tags = registry.registered_tags(name)
    assert [tags["promotion.000001"], tags["promotion.000002"]] == lines
    assert registry.champion_version(name) == 2


def test_what_is_no_change_is_not_logged(name):
    move(name, 1, None)
    move(name, 1, 1)
    assert len(log_of(name)) == 1


def test_alias_taken_away(name):
    move(name, 1, None)
    move(name, None, 1)
    assert registry.aliases(name) == {}
    assert log_of(name)[-1] == ("promote", "champion", 1, None)


def test_decision_against_another_champion_is_refused(name):
    move(name, 1, None)
    with pytest.raises(PromotionConflict, match=r"champion of .* is version 1, but .* nowhere"):
        move(name, 2, None)
    assert registry.champion_version(name) == 1
    assert len(log_of(name)) == 1


def test_tampered_version_is_neither_logged_nor_promoted(name):
    folder = registry.load_version(name, 2).folder
    (folder / "evidence/seen_ids.txt").write_text("")
    with pytest.raises(VerificationError, match="sha256 mismatch"):
        move(name, 2, None)
    assert (registry.champion_version(name), log_of(name)) == (None, [])


def test_killed_between_log_and_alias(name, monkeypatch):
    """The log is written first: an alias that moved unseen would be worse than this."""
    move(name, 1, None)
    with monkeypatch.context() as patch:
        patch.setattr(aliases, "set_alias", lambda *_: sys.exit(137))
        with pytest.raises(SystemExit):
            move(name, 2, 1)
    assert registry.champion_version(name) == 1
    move(name, 3, 1)
    assert log_of(name)[1:] == [
        ("promote", "champion", 1, 2),
        ("found", "champion", 2, 1),
        ("promote", "champion", 1, 3),
    ]


def test_alias_moved_in_mlflow_itself_is_noticed(store, name):
    move(name, 1, None)
    store.client.set_registered_model_alias(name, "champion", "3")
    move(name, 2, 3)
    assert ("found", "champion", 1, 3) in log_of(name)


def damage_byte(file):
    file.write_bytes(file.read_bytes().replace(b"better", b"bettor", 1))


def cut_first_line(file):
    file.write_bytes(file.read_bytes().partition(b"\n")[2])


def tear_last_line(file):
    file.write_bytes(file.read_bytes()[:-30])


def delete(file):
    file.unlink()


@pytest.mark.parametrize("damage", [damage_byte, cut_first_line, tear_last_line, delete])
def test_damaged_file_is_noticed_restored_and_the_damage_stays_visible(name, damage, caplog):
    move(name, 1, None)
    move(name, 2, 1)
    sound = log_file(name).read_text()
    damage(log_file(name))
    assert read_log(name).problems
    move(name, 3, 2)
    assert log_file(name).read_text().startswith(sound)
    assert read_log(name).problems == []
    assert [entry[0] for entry in log_of(name)] == ["promote", "promote", "restored", "promote"]
    assert f"promotion log of {name}" in caplog.text
    kept = list(log_file(name).parent.glob("log.jsonl.damaged-*"))
    assert len(kept) == (damage is not delete)


def test_deleted_tags_are_restored(store, name):
    move(name, 1, None)
    store.client.delete_registered_model_tag(name, "promotion.000001")
    assert read_log(name).problems == ["line 1 is missing from the registered model's tags"]
    move(name, 2, 1)
    assert read_log(name).problems == []


def test_line_lost_in_both_copies_blocks_nobody_and_stays_named(store, name):
    move(name, 1, None)
    move(name, 2, 1)
    cut_first_line(log_file(name))
    store.client.delete_registered_model_tag(name, "promotion.000001")
    move(name, 3, 2)
    assert registry.champion_version(name) == 3
    assert "line 1 is lost in both copies" in read_log(name).problems


def test_note_moves_nothing(name):
    with alias_changes(name) as changes:
        changes.note("reject", "ugly\ncolours", version=2)
    assert registry.aliases(name) == {}
    assert log_of(name) == [("reject", "", 2, 2)]
    assert read_log(name).entries[0].why == "ugly colours"


def test_evidence_lies_under_its_digest(name):
    sha256 = aliases.store_evidence(name, {"rules": [1]})
    file = paths.PROMOTIONS / name / "evidence" / f"{sha256}.json"
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
from src.tracking import registry
from src.tracking.aliases import alias_changes
decided_against = registry.champion_version(name)
Path(ready).touch()
while not Path(go).exists():
    time.sleep(0.01)
try:
    with alias_changes(name) as changes:
        changes.move("champion", int(version), expected=decided_against, action="promote", why="x")
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
    assert registry.champion_version(name) == int(winner)
    assert log_of(name)[1:] == [("promote", "champion", 1, int(winner))]
