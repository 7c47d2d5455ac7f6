"""Small searches for the tests of tuning."""

import os
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from src import paths
from src.params import Params, TuneParams, load_params
from src.tuning.space import PRESENT
from src.tuning.worker import Job


def params(**changes: Any) -> Params:
    """The sample preset with values by dotted name."""
    return load_params(paths.ROOT / "presets" / "sample.yaml").with_values(changes)


def tune(**changes: Any) -> TuneParams:
    """The section tune of the sample preset with ``changes``, validated."""
    sample = load_params(paths.ROOT / "presets" / "sample.yaml").tune
    return TuneParams.model_validate({**sample.model_dump(), **changes})


def score_trials(url: str, study: str, n_trials: int) -> None:
    """What a worker does, with a score that costs nothing; run in processes of their own."""
    from src.tuning.claiming import claim_and_run
    from src.tuning.study import load_study

    section = tune()
    claim_and_run(
        load_study(url, study, section),
        url,
        section,
        n_trials=n_trials,
        run=lambda _, values: 1.0 - abs(values["finetune.depth"] - 2) / 10,
        is_over=lambda: False,
        at_most=1000,
    )


def job(folder: Path, **changes: Any) -> Job:
    """What a worker on a fresh study in ``folder`` is told."""
    values: dict[str, Any] = {
        "study": "s",
        "url": f"sqlite:///{folder / 'tune.db'}",
        "params": params(),
        "n_trials": 4,
        "threads": 1,
        "worker": 0,
        "study_key": "k",
        "study_run_id": "r",
        "deadline_s": None,
        "logs": str(folder),
    }
    return Job(**{**values, **changes})


def work_cheaply(job: Job, pipe: Connection) -> None:  # noqa: ARG001
    """A worker whose trials cost nothing and don't fail."""
    _work(job, lambda *_: 0.5)


def die_in_the_first_trial(job: Job, pipe: Connection) -> None:  # noqa: ARG001
    """A worker that is killed in trial 0, and in no other."""
    _work(job, lambda trial, _: _die() if trial.number == 0 else 0.5)


def die_of_the_present(job: Job, pipe: Connection) -> None:  # noqa: ARG001
    """A worker that is killed whenever it runs the present setting."""
    _work(job, lambda trial, _: _die() if trial.user_attrs.get(PRESENT) else 0.5)


def die_at_once(job: Job, pipe: Connection) -> None:  # noqa: ARG001
    """A worker that is killed before it claims anything."""
    _die()


def complain(job: Job, pipe: Connection) -> None:  # noqa: ARG001
    """A worker that can't go on, and says why."""
    pipe.send("the disk is full")
    raise SystemExit(1)


def _die() -> float:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("still alive")


def _work(job: Job, run: Callable[..., float]) -> None:
    from src.tuning.claiming import claim_and_run
    from src.tuning.study import load_study

    section = job.params.tune
    claim_and_run(
        load_study(job.url, job.study, section),
        job.url,
        section,
        n_trials=job.n_trials,
        run=run,
        is_over=job.is_late,
        at_most=1000,
    )
