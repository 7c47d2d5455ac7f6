"""The run of ``explore``: one, with everything, ended as what it was."""

import json

import pytest

from src.tracking.exploration_run import exploration_run

pytest_plugins = ("tests.tracking.fixtures",)

DATA = {"content_digest": "abc", "groups_are": "slides", "slide_disjoint": "true"}
REPORT = {"n_train": 12, "channels": {"train": {"mean": [0.7]}}, "duplicates": {"n_sets": 1}}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "explore").mkdir()
    (tmp_path / "explore" / "explore.json").write_text(json.dumps(REPORT))
    (tmp_path / "explore" / "labels.png").write_bytes(b"\x89PNG")
    return tmp_path / "explore"


def test_run_holds_numbers_pictures_and_which_data(store, folder):
    with exploration_run(DATA) as run:
        run.log_result(REPORT, folder)
    logged = store.client.get_run(run.run_id)
    assert logged.info.status == "FINISHED"
    assert logged.data.metrics == {"n_train": 12, "duplicates.n_sets": 1}
    assert logged.data.tags.items() >= (DATA | {"stage": "explore"}).items()
    files = {f.path for f in store.client.list_artifacts(run.run_id, "explore")}
    assert files == {"explore/explore.json", "explore/labels.png"}


def test_failed_exploration_is_not_left_running(store):
    with pytest.raises(RuntimeError, match="no pixels"), exploration_run(DATA) as run:
        raise RuntimeError("no pixels")
    assert store.client.get_run(run.run_id).info.status == "FAILED"
