"""Small searches for the tests of tuning, and workers whose trials cost nothing."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import optuna

from src import paths
from src.params import Params, TuneParams, load_params
from src.tuning import study as studies
from src.tuning.space import draw
from src.tuning.study import Job, open_study
from src.tuning.workers import optimize


def params(**changes: Any) -> Params:
    """The sample preset with values by dotted name."""
    return load_params(paths.ROOT / "presets" / "sample.yaml").with_values(changes)


def tune(**changes: Any) -> TuneParams:
    """The section tune of the sample preset with ``changes``, validated."""
    sample = load_params(paths.ROOT / "presets" / "sample.yaml").tune
    return TuneParams.model_validate({**sample.model_dump(), **changes})


def job(url: str, *, n_trials: int = 4, deadline_s: float | None = None, seed: int = 0) -> Job:
    """What a worker on study ``s`` is told."""
    small = params().model_copy(update={"tune": tune(n_trials=n_trials)})
    return Job(
        study="s",
        url=url,
        params=small,
        parent_run_id="r",
        deadline_s=deadline_s,
        threads=1,
        sampler_seed=seed,
    )


def work_cheaply(job: Job, pipe: Connection) -> None:  # noqa: ARG001
    """A worker whose trials cost nothing and don't fail."""
    _work(job, lambda _: 0.5)


def die_if_first(job: Job, pipe: Connection) -> None:  # noqa: ARG001
    """A worker that is killed in its first trial if it is the first; seconds later it's noticed."""
    studies.HEARTBEAT_S, studies.STALE_AFTER_S = 1, 2
    _work(job, lambda _: _die() if job.sampler_seed == 0 else _take_a_second())


def die_at_once(job: Job, pipe: Connection) -> None:  # noqa: ARG001
    """A worker that is killed before it runs anything."""
    _die()


def complain(job: Job, pipe: Connection) -> None:  # noqa: ARG001
    """A worker that can't go on, and says why."""
    pipe.send("the disk is full")
    raise SystemExit(1)


def _work(job: Job, score: Callable[[optuna.Trial], float]) -> None:
    def objective(trial: optuna.Trial) -> float:
        trial.set_user_attr("pid", os.getpid())
        draw(trial, job.params.tune.space)
        return score(trial)

    study = open_study(job.url, job.study, job.params.tune, sampler_seed=job.sampler_seed)
    optimize(study, job, objective)


def _take_a_second() -> float:
    time.sleep(1)
    return 0.5


def _die() -> float:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("still alive")
