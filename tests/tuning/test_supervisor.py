"""Workers that die while their parent lives, on real studies and processes, without training."""

from collections import Counter

import pytest

from src.system.log import get_logger
from src.tuning import budget
from src.tuning.study import begin_study, load_study
from src.tuning.supervisor import Supervisor, WorkersFailed
from tests.tuning import support

pytestmark = pytest.mark.timeout(120)


def _supervise(job, main, *, n_workers: int = 1) -> tuple[Counter, int]:
    """States of the study's trials in the end, and how often workers died."""
    begin_study(job.url, job.study, job.params, {})
    study, deaths = load_study(job.url, job.study, job.params.tune), []

    def trials():
        return study.get_trials(deepcopy=False)

    Supervisor(
        job, n_workers, log=get_logger("tune"), on_death=lambda: deaths.append(1), main=main
    ).run(
        is_finished=lambda: budget.is_spent(trials(), job.n_trials),
        n_ended=lambda: budget.n_ended(trials()),
        watch=lambda: None,
    )
    return budget.count(trials()), len(deaths)


def test_a_killed_worker_is_replaced_and_the_budget_met(tmp_path):
    """Catches EOFError from the pipe of the dead, and a trial that stays RUNNING."""
    counts, n_deaths = _supervise(
        support.job(tmp_path), support.die_in_the_first_trial, n_workers=2
    )
    assert counts == {"retried": 1, "complete": 4}
    assert n_deaths == 1


def test_a_trial_that_kills_its_workers_does_not_end_the_study(tmp_path):
    """Catches a search of hours that ends because one setting needs too much memory."""
    job = support.job(tmp_path, n_trials=2)
    counts, n_deaths = _supervise(job, support.die_of_the_present)
    assert counts == {"retried": 3, "failed": 1, "complete": 2}
    assert n_deaths == 4


def test_no_worker_is_started_again_after_the_time_is_up(tmp_path):
    """Catches a --timeout after which workers start and end for ever."""
    counts, n_deaths = _supervise(support.job(tmp_path, deadline_s=0.0), support.work_cheaply)
    assert counts == {"waiting": 1}
    assert n_deaths == 0


def test_workers_that_only_die_are_given_up(tmp_path):
    """Catches an endless line of workers that no machine can run."""
    with pytest.raises(WorkersFailed, match="killed by signal 9; is there enough memory"):
        _supervise(support.job(tmp_path), support.die_at_once)


def test_what_a_worker_says_last_is_what_a_person_reads(tmp_path):
    """Catches a message that is lost, and a worker that is started again though it can't go on."""
    with pytest.raises(WorkersFailed, match="the disk is full"):
        _supervise(support.job(tmp_path), support.complain)
