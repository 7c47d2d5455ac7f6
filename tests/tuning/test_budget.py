"""Counting, claiming, the dead, pruning, failing: on real studies without training."""

import sqlite3
from contextlib import closing
from dataclasses import asdict

import optuna
import pytest
from optuna.trial import TrialState

from src.tuning import budget
from src.tuning.claiming import claim_and_run, reason_of
from src.tuning.retrying import settle
from src.tuning.space import PRESENT
from src.tuning.storage import STALE_AFTER_S
from src.tuning.study import load_study, pruner
from src.tuning.worker import report
from tests.tuning.support import tune

pytestmark = pytest.mark.filterwarnings("ignore:Heartbeat of storage:UserWarning")  # ask by hand

HALVING = {"name": "halving", "min_epochs": 1, "reduction": 2}
MEDIAN = {"name": "median", "startup_trials": 1, "warmup_epochs": 1}


@pytest.fixture
def url(tmp_path) -> str:
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


def test_a_score_that_is_no_number_fails_with_its_reason(url):
    """Catches a trial that counts as interrupted, and is run again for ever."""
    study = load_study(url, "s", tune())
    assert _run(study, url, 1, lambda *_: float("nan")) == 1
    (trial,) = study.get_trials(deepcopy=False)
    assert budget.state_of(trial) == "failed"
    assert "the score is nan" in budget.why_failed(trial)


def test_what_a_trial_raises_is_its_reason(url):
    """Catches a study without end: a failure without a reason looked like a dead worker's."""
    study = load_study(url, "s", tune())

    def run(*_):
        raise OSError("No space left on device")

    assert _run(study, url, 2, run) == 2
    assert _states(study) == ["failed", "failed"]
    assert budget.why_failed(study.trials[0]) == "OSError: No space left on device"


def test_a_trial_that_was_taken_for_dead_does_not_end_its_worker(url):
    """Catches Optuna's AssertionError when a trial ends that another host has ended already."""
    study = load_study(url, "s", tune())

    def run(trial, _):
        if trial.number == 0:
            study.tell(0, state=TrialState.FAIL)  # what another host does after two silent minutes
        return 0.5

    _run(study, url, 1, run)
    first, second = study.get_trials(deepcopy=False)
    assert [budget.state_of(first), budget.state_of(second)] == ["retried", "complete"]
    assert second.params == first.params


def _begin_as_dead(study, *, depth: bool = True):
    trial = study.ask()
    if depth:
        trial.suggest_categorical("finetune.depth", [0, 1, 2, 3])
    this = asdict(budget.this_process())
    boot = this["started"].partition(":")[0]
    trial.set_user_attr(budget.PROCESS, {**this, "pid": 2**22 + 1, "started": f"{boot}:1"})
    return trial


def test_the_dead_are_tried_again_with_their_parameters(url):
    """Catches a killed worker's trial that stays RUNNING, or whose parameters are lost."""
    study = load_study(url, "s", tune())
    trial = _begin_as_dead(study)
    trial.report(0.5, step=1)
    trial.storage.set_trial_system_attr(trial._trial_id, "completed_rung_0", 0.5)
    alive = study.ask()
    budget.sign(alive)
    assert settle(study) == [0]
    first, second, third = study.get_trials(deepcopy=False)
    assert first.state is TrialState.FAIL
    assert second.state is TrialState.RUNNING
    assert third.state is TrialState.WAITING
    assert budget.retry_of(third) == 0
    assert third.params == first.params
    assert not third.system_attrs  # halving's rungs are those of the trial that died
    assert budget.PROCESS not in third.user_attrs
    assert budget.state_of(first) == "retried"


def test_settling_again_changes_nothing(url):
    """Catches a trial that is enqueued by the worker that stopped and by the one that finds it."""
    study = load_study(url, "s", tune())
    _begin_as_dead(study)
    assert settle(study) == [0]
    assert settle(study) == []
    assert _states(study) == ["retried", "waiting"]


def test_the_present_parameters_survive_a_kill_before_their_draw(url):
    """Catches a study that never runs what it is compared with."""
    study = load_study(url, "s", tune())
    study.enqueue_trial({"finetune.depth": 3}, user_attrs={PRESENT: True})
    _begin_as_dead(study, depth=False)
    assert settle(study) == [0]
    again = study.ask()
    assert again.suggest_categorical("finetune.depth", [0, 1, 2, 3]) == 3
    assert again.user_attrs[PRESENT]


def test_a_trial_of_another_boot_may_be_alive(url):
    """Catches two machines of one name that end each other's trials; the heartbeat tells."""
    study = load_study(url, "s", tune())
    trial = _begin_as_dead(study)
    elsewhere = {**trial.user_attrs[budget.PROCESS], "started": "another-boot:1"}
    trial.set_user_attr(budget.PROCESS, elsewhere)
    assert settle(study) == []
    assert _states(study) == ["running"]


def test_a_trial_elsewhere_is_tried_again_once_its_heartbeat_is_silent(url):
    """Catches a study that waits for ever for a host that is gone (both sides of the limit)."""
    study = load_study(url, "s", tune())
    trial = _begin_as_dead(study)
    trial.set_user_attr(budget.PROCESS, {**trial.user_attrs[budget.PROCESS], "host": "elsewhere"})
    trial.storage.record_heartbeat(trial._trial_id)
    _set_back_the_heartbeat(url, STALE_AFTER_S - 20)
    assert settle(study) == []
    _set_back_the_heartbeat(url, 40)
    assert settle(study) == [0]
    assert _states(study) == ["retried", "waiting"]


def _set_back_the_heartbeat(url: str, seconds: int) -> None:
    with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as database:
        database.execute(
            "UPDATE trial_heartbeats SET heartbeat = datetime(heartbeat, ?)",
            (f"-{seconds} seconds",),
        )
        database.commit()


def test_a_trial_that_kills_every_worker_is_given_up(url):
    """Catches parameters that take all memory and are tried for ever, or vanish without a word."""
    study = load_study(url, "s", tune())
    for _ in range(4):
        _begin_as_dead(study)
        settle(study)
    trials = study.get_trials(deepcopy=False)
    assert _states(study) == ["retried", "retried", "retried", "failed"]
    assert budget.why_failed(trials[3]).startswith("its worker died 4 times; out of memory?")
    assert budget.is_spent(trials, 1)


def test_stops_by_hand_do_not_use_up_the_tries(url):
    """Catches values that are given up because a person pressed Ctrl-C four times."""
    study = load_study(url, "s", tune())
    for _ in range(6):
        trial = study.ask()
        trial.suggest_categorical("finetune.depth", [0, 1, 2, 3])
        trial.set_user_attr(budget.REASON, budget.STOPPED)
        study.tell(trial, state=TrialState.FAIL)
        settle(study)
    assert _states(study) == ["retried"] * 6 + ["waiting"]


def test_a_trial_without_an_owner_was_left_by_the_dead(url):
    """Catches a worker killed between asking for a trial and saying whose it is."""
    study = load_study(url, "s", tune())
    study.ask()
    assert settle(study) == []  # it had no values yet: the next draw stands in for it
    assert _states(study) == ["retried"]


def test_the_same_seed_draws_the_same_trials(tmp_path):
    """Catches a sampler that isn't seeded, or by something that differs from run to run."""

    def drawn(name: str, seed: int) -> list[dict]:
        url, section = f"sqlite:///{tmp_path / name}", tune(seed=seed, startup_trials=2)
        study = load_study(url, "s", section)
        claim_and_run(
            study,
            url,
            section,
            n_trials=6,
            run=lambda _, values: values["finetune.depth"] / 10,
            is_over=lambda: False,
            at_most=6,
        )
        return [trial.params for trial in study.get_trials(deepcopy=False)]

    first = drawn("a.db", 1)
    assert drawn("b.db", 1) == first
    assert drawn("c.db", 2) != first
    assert len({str(each) for each in first}) > 2


def test_a_trial_that_runs_when_time_is_up_is_finished(url):
    """Catches a --timeout that cuts a trial off, or one that lets another begin."""
    study, begun = load_study(url, "s", tune()), []

    def run(trial, _):
        begun.append(trial.number)
        return 0.5

    n_run = claim_and_run(
        study, url, tune(), n_trials=3, run=run, is_over=lambda: bool(begun), at_most=100
    )
    assert n_run == 1
    assert _states(study) == ["complete"]


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
