"""The parent run of a study: one, whoever comes first, and ended as what the study became."""

import uuid
from contextlib import nullcontext

import pytest

from src.tracking import tuning_runs
from src.tracking.lifecycle import begin
from src.tracking.tuning_runs import has_model, log_best_model, study_run

pytest_plugins = ("tests.tracking.fixtures",)


@pytest.fixture
def key() -> str:
    return uuid.uuid4().hex


def _study_run(key: str):
    return study_run("s", key=key, params={"n": 1}, tags={}, alone=nullcontext)


def _status(store, run_id: str) -> str:
    return store.client.get_run(run_id).info.status


def test_the_second_joins_and_leaves_the_run_to_the_first(store, key):
    """Catches two parent runs of one study, and one that is ended while the first works."""
    with _study_run(key) as first:
        with _study_run(key) as second:
            assert second == first
        assert _status(store, first) == "RUNNING"
    assert _status(store, first) == "FINISHED"


def test_a_study_that_the_second_finishes_is_not_killed(store, key):
    """Catches KILLED on a complete study because the process that began it was stopped."""
    first = _study_run(key)
    run_id = first.__enter__()
    with _study_run(key):
        first.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
        assert _status(store, run_id) == "KILLED"
    assert _status(store, run_id) == "FINISHED"


def test_one_begins_the_run_under_the_lock(store, key):
    """Catches the search for a run and its begin outside the lock: two that start at once race."""
    inside = []

    class Lock:
        def __enter__(self):
            inside.append(self._n_runs())

        def __exit__(self, *_):
            inside.append(self._n_runs())

        @staticmethod
        def _n_runs() -> int:
            found = store.client.search_runs(
                [store.experiment_id], filter_string=f"tags.{tuning_runs.WORK_KEY} = '{key}'"
            )
            return len(found)

    with study_run("s", key=key, params={}, tags={}, alone=Lock):
        assert inside == [0, 1]


def test_an_error_of_the_search_is_not_the_stores(store, key):
    """Catches a full disk that reads as a tracking store which didn't take the run."""
    with pytest.raises(OSError, match=r"^No space left$"), _study_run(key) as run_id:
        raise OSError("No space left")
    assert _status(store, run_id) == "FAILED"


def test_only_the_best_has_a_model_and_it_is_logged_once(store, key, monkeypatch, tmp_path):
    """Catches two models after a study went on, and an upload at every start of a finished one."""
    models: dict[str, str] = {}
    monkeypatch.setattr(
        tuning_runs, "log_model", lambda _, path, **about: models.update({about["run_id"]: path})
    )
    monkeypatch.setattr(tuning_runs, "delete_models", lambda _, run_id: models.pop(run_id, None))
    with _study_run(key) as study:
        before, after = (begin(store, f"trial {n}", {"stage": "trial"}) for n in range(2))
        log_best_model(study, before, tmp_path / "a", sha256="a")
        assert has_model(before, "a")
        assert not has_model(before, "b")
        log_best_model(study, after, tmp_path / "b", sha256="b")
    assert models == {after: tmp_path / "b"}
    assert has_model(after, "b")
    assert not has_model(before, "a")
