"""The runs of a study in MLflow: one parent, ended as what the study became; one model."""

from __future__ import annotations

import uuid
from types import SimpleNamespace

import pytest

from src.system.log import get_logger
from src.tracking import tuning_runs
from src.tracking.lifecycle import begin
from src.tracking.store import TrackingError
from src.tracking.tuning_runs import TrialRun, ending_study_run, log_study, open_study_run

pytest_plugins = ("tests.tracking.fixtures",)


@pytest.fixture
def key() -> str:
    return uuid.uuid4().hex


def _open(key: str) -> str:
    return open_study_run("s", key=key, params={"n": 1}, tags={})


def _status(store, run_id: str) -> str:
    return store.client.get_run(run_id).info.status


def test_all_commands_on_a_study_share_its_run(store, key):
    """Catches two parent runs of one study, and one that stays RUNNING."""
    run_id = _open(key)
    with ending_study_run(run_id):
        assert _open(key) == run_id
        assert _status(store, run_id) == "RUNNING"
    assert _status(store, run_id) == "FINISHED"
    assert _open(key) == run_id
    assert _status(store, run_id) == "RUNNING"
    assert _open(uuid.uuid4().hex) != run_id


@pytest.mark.parametrize(
    ("error", "status"), [(OSError("No space left"), "FAILED"), (KeyboardInterrupt(), "KILLED")]
)
def test_the_run_ends_as_the_search_did(store, key, error, status):
    """Catches a full disk that reads as a store which didn't take the run, or as FINISHED."""
    run_id = _open(key)
    with pytest.raises(type(error)), ending_study_run(run_id):
        raise error
    assert _status(store, run_id) == status


def test_the_trial_of_a_dead_worker_is_closed(store, key):
    """Catches runs left RUNNING by a worker that was killed."""
    dead = begin(store, "trial 0", {"stage": "trial"})
    store.client.set_tag(dead, "hcd.pid", str(2**22 + 1))
    with ending_study_run(_open(key)):
        pass
    assert _status(store, dead) == "KILLED"


def test_a_store_that_is_gone_costs_a_trial_nothing(monkeypatch):
    """Catches a trial that fails because MLflow doesn't answer."""

    def connect():
        raise TrackingError("the server is gone")

    monkeypatch.setattr(tuning_runs, "connect", connect)
    run = TrialRun(get_logger("tune"))
    record = SimpleNamespace()
    monkeypatch.setattr(tuning_runs, "run_tags", lambda _: {})
    run.begin(record, parent_run_id="r", tags={"trial": "0"})
    run.log_epoch(1, {"val_auroc": 0.5})
    run.end("complete", value=0.5)
    assert run.run_id is None


def test_only_the_best_keeps_its_model(store, key, monkeypatch, tmp_path):
    """Catches models of trials that were the best for a while, and other studies' deleted."""
    deleted = []
    monkeypatch.setattr(tuning_runs, "delete_models", lambda _, run_id: deleted.append(run_id))
    study, other = _open(key), _open(uuid.uuid4().hex)
    former, best, foreign = (
        begin(store, "trial", {"stage": "trial", "mlflow.parentRunId": parent})
        for parent in (study, study, other)
    )
    for run_id in (former, best, foreign):
        store.client.set_tag(run_id, "has_model", "yes")
    (tmp_path / "trials.csv").write_text("trial\n")
    log_study(study, metrics={"n": 1}, tags={}, folder=tmp_path, only_model_of=best)
    assert deleted == [former]
    assert [f.path for f in store.client.list_artifacts(study, "report")] == ["report/trials.csv"]
