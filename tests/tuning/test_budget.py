"""Counting, claiming, the dead, pruning, failing: on real studies without training."""

import optuna
import pytest
from optuna.trial import TrialState

from src.tuning import budget
from src.tuning.claiming import claim_and_run
from src.tuning.study import load_study, pruner
from src.tuning.worker import reason_of, report
from tests.tuning.support import tune

pytestmark = pytest.mark.filterwarnings("ignore:Heartbeat of storage:UserWarning")  # ask by hand

HALVING = {"name": "halving", "min_epochs": 1, "reduction": 2}
MEDIAN = {"name": "median", "startup_trials": 1, "warmup_epochs": 1}


@pytest.fixture
def url(tmp_path, monkeypatch) -> str:
    monkeypatch.setattr("src.paths.TUNE_LOCKS", tmp_path / "locks")
    return f"sqlite:///{tmp_path / 'tune.db'}"


def _run(study, url, n_trials, run) -> int:
    over = {"is_over": lambda: False, "at_most": 100}
    return claim_and_run(study, url, tune(), n_trials=n_trials, run=run, **over)


def _states(study) -> list[str]:
    return [budget.state_of(trial) for trial in study.get_trials(deepcopy=False)]


def test_complete_and_pruned_count_and_failed_do_not(url):
    """Catches a budget that failures use up, or that pruned trials don't."""
    study = load_study(url, "s", tune())

    def run(trial, _):
        if trial.number == 0:
            trial.set_user_attr(budget.REASON, "loss is nan")
            raise ValueError("loss is nan")
        if trial.number == 1:
            trial.report(0.5, step=1)
            raise optuna.TrialPruned
        return 0.7

    _run(study, url, 3, run)
    assert _states(study) == ["failed", "pruned", "complete", "complete"]


def test_a_study_in_which_all_fail_ends(url):
    """Catches a search that goes on for ever because nothing counts."""
    study = load_study(url, "s", tune())

    def run(trial, _):
        trial.set_user_attr(budget.REASON, "out of memory")
        raise MemoryError

    assert _run(study, url, 2, run) == 2
    assert _states(study) == ["failed", "failed"]


def test_the_dead_are_tried_again_with_their_parameters(url):
    """Catches a killed worker's trial that stays RUNNING, or whose parameters are lost."""
    study = load_study(url, "s", tune())
    trial = study.ask()
    trial.suggest_categorical("finetune.depth", [0, 1, 2, 3])
    dead = {"host": budget.this_process().host, "pid": 2**22 + 1, "started": "never:1"}
    trial.set_user_attr(budget.PROCESS, dead)
    alive = study.ask()
    budget.sign(alive)
    assert budget.bury_dead(study) == [0]
    first, second, third = study.get_trials(deepcopy=False)
    assert first.state is TrialState.FAIL
    assert second.state is TrialState.RUNNING
    assert third.state is TrialState.WAITING
    assert budget.retry_of(third) == 0
    assert third.params == first.params
    assert budget.state_of(first) == "retried"


def test_a_trial_that_kills_every_worker_is_given_up(url):
    """Catches parameters that take all memory and are tried for ever."""
    study = load_study(url, "s", tune())
    dead = {"host": budget.this_process().host, "pid": 2**22 + 1, "started": "never:1"}
    for _ in range(4):
        trial = study.ask()
        trial.suggest_categorical("finetune.depth", [0, 1, 2, 3])
        trial.set_user_attr(budget.PROCESS, dead)
        budget.bury_dead(study)
    assert [t.state for t in study.get_trials(deepcopy=False)] == [TrialState.FAIL] * 4


def test_a_trial_without_an_owner_was_left_by_the_dead(url):
    """Catches a worker killed between asking for a trial and saying whose it is."""
    study = load_study(url, "s", tune())
    study.ask()
    assert budget.bury_dead(study) == [0]


def test_waits_while_others_run_what_is_left():
    """Catches an overshoot (both sides of the boundary)."""
    trials = [
        optuna.trial.create_trial(state=TrialState.COMPLETE, value=0.5),
        optuna.trial.create_trial(state=TrialState.RUNNING),
    ]
    assert budget.next_move(trials, 3) == "claim"
    assert budget.next_move(trials, 2) == "wait"
    assert budget.next_move(trials, 1) == "stop"


def _prunes(rule: dict, good: list[float], tried: list[float]) -> bool:
    study = optuna.create_study(direction="maximize", pruner=pruner(tune(pruner=rule)))
    for scores in [good] if rule["name"] == "median" else [good] * 3:
        trial = study.ask()
        for epoch, value in enumerate(scores, start=1):
            trial.report(value, step=epoch)
            trial.should_prune()
        study.tell(trial, scores[-1])
    trial = study.ask()
    try:
        for epoch, value in enumerate(tried, start=1):
            report(trial, value, epoch)
    except optuna.TrialPruned:
        return True
    return False


@pytest.mark.parametrize("rule", [MEDIAN, HALVING, {"name": "none"}], ids=lambda r: r["name"])
def test_bad_trials_end_and_good_ones_do_not(rule):
    """Catches a pruner that ends nothing, or the best trial; none ends none."""
    assert _prunes(rule, [0.8, 0.8], [0.6, 0.6]) == (rule["name"] != "none")
    assert not _prunes(rule, [0.8, 0.8], [0.9, 0.9])


def test_no_trial_is_ended_in_the_warm_up():
    """Catches warm-up that is an epoch short: epochs count from 1, Optuna's steps from 0."""
    assert not _prunes(MEDIAN, [0.8, 0.8], [0.6])
    assert _prunes(MEDIAN, [0.8, 0.8], [0.6, 0.6])


def test_reasons_are_one_line_and_say_what_to_do_about_memory():
    """Catches a reason that is a page of traceback."""
    assert reason_of(ValueError("a\nb")) == "ValueError: a b"
    assert "fewer --workers" in reason_of(MemoryError("no"))
