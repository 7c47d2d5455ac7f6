"""Workers on real studies, without training: what counts, what fails, who dies."""

from __future__ import annotations

import logging
import os
import signal
from types import SimpleNamespace

import optuna
import pytest
from optuna.trial import TrialState

from src.system.log import get_logger
from src.tuning import workers
from src.tuning.report import retry_of
from src.tuning.space import TuneError, draw
from src.tuning.study import REASON, begin_study, count, open_study, pruner, state_of, why_failed
from src.tuning.workers import Objective, optimize, search
from tests.tuning import support

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.tensorflow,
    pytest.mark.filterwarnings("ignore:Heartbeat of storage:UserWarning"),  # ask by hand
]

FIT = {
    "history": [{"epoch": 1, "val_auroc": 0.7, "val_loss": 0.6}],
    "best_epoch": 1,
    "final_weights_sha256": "f" * 64,
}


@pytest.fixture
def url(tmp_path) -> str:
    return f"sqlite:///{tmp_path / 'tune.db'}"


def _study(url: str) -> optuna.Study:
    return open_study(url, "s", support.tune())


def _states(study) -> list[str]:
    return [state_of(trial) for trial in study.get_trials(deepcopy=False)]


def test_complete_and_pruned_count_and_failed_do_not(url):
    """Catches a budget that failures use up, or that pruned trials don't."""

    def objective(trial):
        if trial.number == 0:
            raise ValueError("loss is nan")
        if trial.number == 1:
            raise optuna.TrialPruned
        return 0.7

    study = _study(url)
    optimize(study, support.job(url, n_trials=3), objective)
    assert _states(study) == ["failed", "pruned", "complete", "complete"]
    optimize(study, support.job(url, n_trials=3), lambda _: pytest.fail("one too many"))


def test_a_study_in_which_all_fail_ends(url):
    """Catches a search that goes on for ever because nothing counts."""
    study = _study(url)
    optimize(study, support.job(url, n_trials=2), _raising(MemoryError()))
    assert _states(study) == ["failed", "failed"]


@pytest.mark.parametrize(("deadline_s", "n"), [(0.0, 0), (9e9, 2)])
def test_no_trial_begins_after_the_deadline(url, deadline_s, n):
    """Catches a --timeout that is ignored, or that ends before it is due (both sides)."""
    study = _study(url)
    optimize(study, support.job(url, n_trials=2, deadline_s=deadline_s), lambda _: 0.5)
    assert len(study.trials) == n


@pytest.mark.parametrize("state", [TrialState.FAIL, TrialState.COMPLETE])
def test_a_trial_that_somebody_else_ended_does_not_end_the_worker(url, state):
    """Catches "Cannot tell a FAIL trial": a worker that was stopped and woken counted as dead; and
    a waiting trial that two workers began at once, which SQLite allows."""
    study = _study(url)

    def objective(trial):
        draw(trial, support.tune().space)
        if trial.number == 0:
            study._storage.set_trial_state_values(trial._trial_id, state, [0.5])
        return 0.5

    optimize(study, support.job(url, n_trials=2), objective)
    assert _states(study)[1:] == ["complete"] * (2 - (state == TrialState.COMPLETE))


def _search(url: str, main, *, n_workers: int) -> list[optuna.trial.FrozenTrial]:
    job = support.job(url)
    study = begin_study(url, "s", job.params, {})
    search(study, job, n_workers, main, get_logger("tune"))
    return study.get_trials(deepcopy=False)


def test_a_dead_workers_trial_is_tried_again(url):
    """Catches a study that ends with its worker, and parameters that are lost with it."""
    trials = _search(url, support.die_if_first, n_workers=2)
    assert count(trials, TrialState.COMPLETE) >= 4
    (dead,) = [trial for trial in trials if trial.state == TrialState.FAIL]
    assert why_failed(dead) == "its worker died"
    (again,) = [trial for trial in trials if retry_of(trial) == dead.number]
    assert again.params == dead.params
    assert again.state == TrialState.COMPLETE
    assert len({str(trial.params) for trial in trials}) == len(trials) - 1  # of other seeds


def test_workers_that_only_die_are_given_up(url):
    """Catches an endless line of workers that no machine can run."""
    with pytest.raises(TuneError, match=r"killed by signal 9.*is there enough memory"):
        _search(url, support.die_at_once, n_workers=1)


def test_what_a_worker_says_last_is_what_a_person_reads(url):
    """Catches a message that is lost, and a worker that is started again though it can't go on."""
    with pytest.raises(TuneError, match="the disk is full"):
        _search(url, support.complain, n_workers=1)


class Run:
    """Stands in for MLflow's run."""

    run_id = "r"
    ends: list[str]

    def __init__(self, *_):
        Run.ends = []

    def begin(self, *_, **__):
        pass

    def log_epoch(self, *_):
        pass

    def log_model(self, *_):
        pass

    def end(self, state: str, **_):
        Run.ends.append(state)


@pytest.fixture
def objective(url, monkeypatch):
    monkeypatch.setattr(workers, "TrialRun", Run)
    monkeypatch.setattr(Objective, "_record", lambda *_: None)
    monkeypatch.setattr(workers, "run_trial", lambda *_: (None, FIT))
    monkeypatch.setattr(workers, "save_model", lambda *_: None)
    return Objective(_study(url), support.job(url), SimpleNamespace(log=get_logger("tune")))


def _raising(error: BaseException):
    def fail(*_, **__):
        raise error

    return fail


@pytest.mark.parametrize(
    ("target", "name"),
    [(Objective, "_record"), (workers, "run_trial"), (workers, "score"), (Run, "begin")],
)
@pytest.mark.parametrize(
    ("error", "state", "reason"),
    [
        (ValueError("two\nlines"), "failed", "ValueError: two lines"),
        (
            MemoryError("no"),
            "failed",
            "out of memory: no; fewer --workers, or lower finetune.batch_size",
        ),
        (KeyboardInterrupt(), "killed", workers.STOPPED),
    ],
)
def test_whatever_ends_a_trial_its_run_is_ended(
    objective, monkeypatch, target, name, error, state, reason
):
    """Catches a run that stays RUNNING, and a failure without a reason."""
    monkeypatch.setattr(target, name, _raising(error))
    trial = objective._study.ask()
    with pytest.raises(type(error)):
        objective(trial)
    assert Run.ends == [state]
    assert trial.user_attrs[REASON] == reason


def test_a_full_disk_costs_the_weights_and_not_the_trial(objective, monkeypatch):
    """Catches a trial that is lost because its weights can't be saved."""
    monkeypatch.setattr(workers, "save_model", _raising(OSError("No space left")))
    assert objective(objective._study.ask()) == 0.7
    assert Run.ends == ["complete"]


@pytest.mark.parametrize(("before", "is_kept"), [(0.71, False), (0.70, True), (0.69, True)])
def test_the_weights_of_the_best_so_far_are_kept(objective, monkeypatch, before, is_kept):
    """Catches a best trial without its model (both sides of the boundary)."""
    saved = []
    monkeypatch.setattr(workers, "save_model", lambda *_: saved.append(1))
    study = objective._study
    study.tell(study.ask(), before)
    objective(study.ask())
    assert bool(saved) == is_kept


def test_sigterm_interrupts_once():
    """Catches a second signal that interrupts the recording of the first."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        workers.stop_when_asked()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


@pytest.mark.parametrize(
    ("rule", "pruned"),
    [
        ({"name": "median", "startup_trials": 1, "warmup_epochs": 1}, [2]),
        ({"name": "halving", "min_epochs": 1, "reduction": 2}, [1]),
        ({"name": "none"}, []),
    ],
)
def test_the_pruner_asked_for_ends_a_bad_trial(rule, pruned):
    """Catches a warm-up that is off by one epoch, and a pruner that isn't the one asked for."""
    section = support.tune(pruner=rule)
    study = optuna.create_study(direction="maximize", pruner=pruner(section))
    for _ in range(3):
        good = study.ask()
        for epoch in (1, 2, 3):
            good.report(0.9, step=epoch)
            assert not good.should_prune()
        study.tell(good, 0.9)
    bad, ended = study.ask(), []
    for epoch in (1, 2, 3):
        bad.report(0.1, step=epoch)
        if bad.should_prune():
            ended.append(epoch)
            break
    assert ended == pruned


def test_progress_says_each_end_once_with_the_best_so_far():
    """Catches a log that repeats itself, or crashes on a trial in any state."""
    told: list[str] = []
    log = logging.Logger("told")
    log.addFilter(lambda record: told.append(record.getMessage()))
    section = support.tune(n_trials=3)
    study = optuna.create_study(direction="maximize")
    study.tell(study.ask(), 0.7)
    first = study.ask()
    draw(first, section.space)
    first.report(0.8, step=1)
    study.tell(first, 0.9)
    study.tell(study.ask(), state=TrialState.FAIL)
    study.enqueue_trial({"finetune.depth": 1})
    ended = {0}
    for _ in range(2):
        workers._report_ended(study, ended, section, log)
    assert len(told) == 2
    assert told[0].startswith("trial 1 complete: finetune.depth")
    assert told[0].endswith("0.9000 after 1 epochs; 2 of 3 trials, best 0.9000 (trial 1)")
    assert told[1].startswith("trial 2 failed (its worker died)")
