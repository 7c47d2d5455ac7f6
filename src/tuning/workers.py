"""Processes that run a study's trials: started here, and what each of them does.

One process per worker, because TensorFlow's memory grows from trial to trial. Each calls
``study.optimize`` until the budget is spent; Optuna's database has what counts, and MLflow gets the
same: where it doesn't answer, the log says so and the trial counts all the same.
"""

from __future__ import annotations

import itertools
import math
import multiprocessing
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, replace
from logging import Logger
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import keras
import optuna
from optuna.study import MaxTrialsCallback
from optuna.trial import TrialState

from src.data.dataset import dataset_identity, split_kind
from src.model.inference import save_model
from src.model.training import Epoch, class_weights
from src.params import Params, TuneParams
from src.system.determinism import Environment
from src.system.errors import ProjectError
from src.system.log import get_logger
from src.tracking.records import RunRecord
from src.tracking.tuning_runs import TrialRun
from src.tuning import space
from src.tuning.report import best_trial, retry_of, shown, value_of
from src.tuning.space import TuneError
from src.tuning.study import (
    COUNTED,
    REASON,
    SHA256,
    Job,
    count,
    is_spent,
    open_study,
    reporting,
    sign_of,
    state_of,
    why_failed,
)
from src.tuning.trial import Search, load_data, run_trial, score

WorkerMain = Callable[[Job, Connection], None]

STOPPED = "stopped by hand"

_TRIALS_A_PROCESS = 25
_LOOK_EVERY_S = 0.5
_TIME_TO_STOP_S = 60.0
_LONGEST_REASON = 300


def search(study: optuna.Study, job: Job, n_workers: int, main: WorkerMain, log: Logger) -> None:
    """Keep ``n_workers`` processes at work until the budget is spent or the time is up.

    They work in rounds of a limited number of trials per process; one that died is replaced in the
    next. ``main`` is what a process runs.
    """
    ended = {t.number for t in study.get_trials(deepcopy=False) if t.state.is_finished()}
    seeds = itertools.count(job.sampler_seed)
    while not is_spent(study.get_trials(deepcopy=False), job.params.tune.n_trials):
        if job.deadline_s is not None and time.time() >= job.deadline_s:
            return
        n_before = len(ended)
        jobs = [
            replace(job, sampler_seed=next(seeds), log_file=f"{job.log_file}-{i}.log")
            for i in range(n_workers)
        ]
        deaths = _run_round(jobs, main, lambda: _report_ended(study, ended, job.params.tune, log))
        for death in deaths:
            log.warning(death)
        if deaths and len(ended) == n_before:
            raise TuneError(
                f"no trial ended: {deaths[-1]}; is there enough memory? Try fewer --workers; the "
                "same command goes on"
            )


def _run_round(jobs: list[Job], main: WorkerMain, look: Callable[[], None]) -> list[str]:
    """Run one process per job until all have ended; what happened to those that died."""
    context = multiprocessing.get_context("spawn")
    workers: list[tuple[BaseProcess, Connection]] = []
    try:
        for job in jobs:
            ours, theirs = context.Pipe(duplex=False)
            process: BaseProcess = context.Process(target=main, args=(job, theirs))
            process.start()
            theirs.close()
            workers.append((process, ours))
        while any(process.is_alive() for process, _ in workers):
            time.sleep(_LOOK_EVERY_S)
            look()
    except BaseException:
        until = time.monotonic() + _TIME_TO_STOP_S
        for process, _ in workers:
            process.terminate()
        for process, _ in workers:
            process.join(max(0.0, until - time.monotonic()))
            process.kill()
            process.join()
        raise
    look()
    deaths = []
    for job, (process, pipe) in zip(jobs, workers, strict=True):
        code = process.exitcode or 0
        if code > 0:
            with suppress(EOFError):  # nothing was said
                raise TuneError(pipe.recv())
        if code:
            how = f"was killed by signal {-code}" if code < 0 else f"ended with {code}"
            deaths.append(f"a worker {how}; see {job.log_file}")
        pipe.close()
    return deaths


def _report_ended(study: optuna.Study, ended: set[int], tune: TuneParams, log: Logger) -> None:
    """Log each trial that isn't in ``ended`` yet, with the best so far: ``7 of 12 trials, …``."""
    trials = study.get_trials(deepcopy=False)
    best = best_trial(trials, objective=tune.objective)
    so_far = "" if best is None else f", best {best.value:.4f} (trial {best.number})"
    for trial in trials:
        if not trial.state.is_finished() or trial.number in ended:
            continue
        ended.add(trial.number)
        values = space.trial_values(tune.space, trial) or {}
        drawn = ", ".join(f"{name} {shown(value)}" for name, value in values.items())
        reason, value = why_failed(trial), value_of(trial)
        how = f" ({reason})" if reason else ""
        n_epochs = len(trial.intermediate_values)
        found = "" if value is None else f"; {value:.4f} after {n_epochs} epochs"
        log.info(
            f"trial {trial.number} {state_of(trial)}{how}: {drawn}{found}; "
            f"{count(trials, *COUNTED)} of {tune.n_trials} trials{so_far}"
        )


def work(job: Job, environment: Environment, pipe: Connection) -> None:
    """Run trials until the study is finished; what is wrong for good goes through ``pipe``.

    SIGTERM, and the end of the parent, stop the trial that is running.
    """
    stop_when_asked()
    tune = job.params.tune
    try:
        with reporting(job.url):
            study = open_study(job.url, job.study, tune, sampler_seed=job.sampler_seed)
            data = load_data(subset=tune.subset, seed=job.params.train.seed)
            depths = space.depths(job.params)
            shared = Search(data, environment, get_logger("tune"), depths=depths)
            optimize(study, job, Objective(study, job, shared))
    except KeyboardInterrupt:
        raise SystemExit(128 + signal.SIGTERM) from None
    except ProjectError as error:
        pipe.send(str(error))
        raise SystemExit(1) from error


def stop_when_asked() -> None:
    """Let SIGTERM and the parent's end raise KeyboardInterrupt, once; Ctrl-C is the parent's."""

    def interrupt(signum: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # what ends the trial isn't interrupted
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, interrupt)

    def wait_for_parent() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(_TIME_TO_STOP_S)
            os._exit(1)  # it didn't listen

    threading.Thread(target=wait_for_parent, daemon=True).start()


def optimize(study: optuna.Study, job: Job, objective: Callable[[optuna.Trial], float]) -> None:
    """Run trials while the budget and the time allow any, at most as many as a process should."""
    n_trials = job.params.tune.n_trials
    numbers: list[int] = []

    def remember(trial: optuna.Trial) -> float:
        numbers.append(trial.number)
        return objective(trial)

    while not is_spent(study.get_trials(deepcopy=False), n_trials):
        n_before = len(numbers)
        try:
            study.optimize(
                remember,
                n_trials=max(1, _TRIALS_A_PROCESS - n_before),
                timeout=None if job.deadline_s is None else job.deadline_s - time.time(),
                catch=(Exception,),
                callbacks=[
                    MaxTrialsCallback(n_trials, states=COUNTED),
                    MaxTrialsCallback(n_trials, states=(TrialState.FAIL,)),
                ],
            )
            return
        except Exception:
            # Optuna raises "Cannot tell a FAIL trial" where somebody else ended ours: a worker that
            # was silent too long (stopped, a laptop asleep) counts as dead, its stand-in is
            # enqueued; and on SQLite two workers may begin the same waiting trial.
            trials = study.get_trials(deepcopy=False)
            if len(numbers) == n_before or not trials[numbers[-1]].state.is_finished():
                raise
            get_logger("tune").warning(f"trial {numbers[-1]} was ended by another process")


class Objective:
    """Trains a trial, and records in Optuna and MLflow how it ended, whatever ended it."""

    def __init__(self, study: optuna.Study, job: Job, shared: Search) -> None:
        self._study, self._job, self._shared = study, job, shared
        self._tune, self._log = job.params.tune, shared.log

    def __call__(self, trial: optuna.Trial) -> float:
        """The trial's score."""
        run = TrialRun(self._log)
        reported: list[float] = []

        def hear(epoch: Epoch) -> None:
            run.log_epoch(epoch.epoch, asdict(epoch))
            reported.append(getattr(epoch, self._tune.objective))
            trial.report(reported[-1], step=epoch.epoch)
            if trial.should_prune():
                raise optuna.TrialPruned

        try:
            params = trial_params(self._job.params, space.draw(trial, self._tune.space))
            tags = {"study": self._job.study, "trial": str(trial.number)}
            former = retry_of(self._study.get_trials(deepcopy=False)[trial.number])
            tags |= {} if former is None else {"retry_of": str(former)}
            run.begin(self._record(params), parent_run_id=self._job.parent_run_id, tags=tags)
            trial.set_user_attr("run_id", run.run_id)
            model, fit = run_trial(params, self._shared, hear)
            value = score(fit, self._tune.objective)
            if not math.isfinite(value):
                raise ValueError(f"the score is {value}, not a finite number")
            trial.set_user_attr(SHA256, fit[SHA256])
            self._keep_weights(model, value, run)
            run.end("complete", fit=fit, value=value)
        except optuna.TrialPruned:
            run.end("pruned", value=reported[-1])
            raise
        except KeyboardInterrupt:
            run.end("killed", reason=STOPPED)
            trial.set_user_attr(REASON, STOPPED)
            raise
        except Exception as error:
            reason = reason_of(error)
            self._log.warning(f"trial {trial.number} failed: {reason}", exc_info=True)
            run.end("failed", reason=reason)
            trial.set_user_attr(REASON, reason)
            raise
        return value

    def _keep_weights(self, model: keras.Model, value: float, run: TrialRun) -> None:
        """Log the model of every trial, or of one that is the best so far.

        What can't be written costs a warning: the trial's score stands.
        """
        best = best_trial(self._study.get_trials(deepcopy=False), objective=self._tune.objective)
        is_best = best is None or sign_of(self._tune.objective) * (value - (best.value or 0.0)) >= 0
        if self._tune.log_weights == "none" or (self._tune.log_weights == "best" and not is_best):
            return
        try:
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / "model.keras"
                save_model(model, file)
                run.log_model(file)
        except Exception as error:
            self._log.warning(f"weights aren't kept: {reason_of(error)}", exc_info=True)

    def _record(self, params: Params) -> RunRecord:
        data, split = self._shared.data, split_kind()
        weights = class_weights(data.train.labels, params.finetune.class_weights)
        return RunRecord(
            stage="finetune",
            params=params.sections("split", "model", "train", "finetune"),
            dataset=dataset_identity(data.train, data.val),
            class_weights=weights,
            schedule=params.finetune.schedule.model_dump(),
            initial_weights_sha256="",
            slide_disjoint=split.slide_disjoint,
            groups_are=split.groups_are,
        )


def trial_params(params: Params, values: dict[str, Any]) -> Params:
    """The parameters a trial is run with: its values, and the epochs of a trial."""
    epochs = {} if params.tune.epochs is None else {"finetune.epochs": params.tune.epochs}
    return params.with_values({**epochs, **values})


def reason_of(error: Exception) -> str:
    """Why a trial failed, in one line."""
    text = " ".join(str(error).split())[:_LONGEST_REASON]
    if isinstance(error, ProjectError):
        return text
    if isinstance(error, MemoryError) or type(error).__name__ == "ResourceExhaustedError":
        return f"out of memory: {text}; fewer --workers, or lower finetune.batch_size"
    return f"{type(error).__name__}: {text}"
