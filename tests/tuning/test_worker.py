"""How a worker says that a trial ended, whatever ended it; without training."""

from types import SimpleNamespace

import optuna
import pytest

from src.system.log import get_logger
from src.tracking import tuning_runs
from src.tuning import budget
from src.tuning.stopping import Stopped, StopSignal
from src.tuning.worker import _Worker
from tests.tuning.support import job, params

FIT = {
    "history": [{"epoch": 1, "val_auroc": 0.7, "val_loss": 0.6}],
    "best_epoch": 1,
    "final_weights_sha256": "f" * 64,
}


class Run:
    """Stands in for MLflow's run."""

    run_id = "r"
    ends: list[str]

    def __init__(self, *_):
        Run.ends = []

    def begin(self, *_, **__):
        pass

    def end(self, state: str, **_):
        Run.ends.append(state)


@pytest.fixture
def worker(tmp_path, monkeypatch):
    monkeypatch.setattr(tuning_runs, "TrialRun", Run)
    monkeypatch.setattr(_Worker, "_record", lambda *_: None)
    monkeypatch.setattr(_Worker, "_train", lambda *_: SimpleNamespace(fit=FIT, model=None))
    made = _Worker.__new__(_Worker)
    made.job, made.params = job(tmp_path), params()
    made.stop, made.log = StopSignal(), get_logger("tune")
    return made


@pytest.fixture
def trial():
    return optuna.create_study(direction="maximize").ask()


def _raising(error: BaseException):
    def fail(*_, **__):
        raise error

    return fail


def test_a_full_disk_costs_the_weights_and_not_the_trial(worker, trial, monkeypatch):
    """Catches a trial that is run again for ever because its weights can't be saved."""
    monkeypatch.setattr("src.tuning.best.keep_if_best", _raising(OSError("No space left")))
    assert worker._run(trial, {}) == 0.7
    assert Run.ends == ["complete"]


@pytest.mark.parametrize("step", ["_record", "_begin", "_train", "_finish"])
def test_whatever_fails_the_run_is_ended(worker, trial, monkeypatch, step):
    """Catches a run that stays RUNNING because the error came before or after the training."""
    monkeypatch.setattr(_Worker, step, _raising(ValueError("no")))
    with pytest.raises(ValueError, match="no"):
        worker._run(trial, {})
    assert Run.ends == ["failed"]


def test_a_stop_by_hand_is_marked_so_that_it_is_tried_again(worker, trial, monkeypatch):
    """Catches a stop that counts as failure, or as the death of a worker."""
    monkeypatch.setattr(_Worker, "_train", _raising(Stopped()))
    with pytest.raises(KeyboardInterrupt):
        worker._run(trial, {})
    assert Run.ends == ["killed"]
    assert trial.user_attrs[budget.REASON] == budget.STOPPED
