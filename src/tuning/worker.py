"""A worker process: claims trials of a study, runs them, and says how each ended.

Optuna's database has what counts. MLflow gets the same and is never waited for: where it doesn't
answer, the log says so and the trial counts all the same.
"""

import os
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from logging import Logger
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from src.params import Params
from src.system.errors import ProjectError
from src.tuning import budget
from src.tuning.claiming import claim_and_run, reason_of
from src.tuning.stopping import Stopped, StopSignal
from src.tuning.storage import reporting
from src.tuning.table import sign_of

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

    from src.model.loop import Epoch
    from src.system.determinism import Environment
    from src.tracking.records import RunRecord
    from src.tracking.tuning_runs import TrialRun
    from src.tuning.trial import TrialResult

WEIGHTS = "final_weights_sha256"

_TRIALS_A_PROCESS = 25  # TensorFlow's memory grows from trial to trial


@dataclass(frozen=True)
class Job:
    """What a worker is told.

    Attributes
    ----------
    study, url : the study's name, and its database
    params : as in ``params.yaml``, with what the command line changed
    n_trials : budget of the study
    threads : for TensorFlow
    worker : number of this worker, from 0
    study_key : tells the study from others of its name
    study_run_id : MLflow's parent run
    deadline_s : Unix time after which no trial begins; None = never
    logs : folder for what the workers have to say
    """

    study: str
    url: str
    params: Params
    n_trials: int
    threads: int
    worker: int
    study_key: str
    study_run_id: str
    deadline_s: float | None
    logs: str

    def log_file(self, who: str) -> str:
        """Where ``who`` writes, a worker's number or a name."""
        return str(Path(self.logs) / f"{self.study}-{who}.log")

    def is_late(self) -> bool:
        """Whether no trial begins any more."""
        return self.deadline_s is not None and time.time() >= self.deadline_s


def main(job: Job, pipe: Connection) -> None:
    """Run trials until the study is finished; what went wrong for good is sent through ``pipe``."""
    from src.system.log import configure, get_logger

    write_to(job.log_file(str(job.worker)))
    stop = StopSignal()
    stop.install()
    configure(job.params.runtime.verbosity)
    try:
        with reporting(job.url):
            _Worker(job, stop, get_logger("tune")).work()
    except (Stopped, KeyboardInterrupt):
        raise SystemExit(143) from None
    except ProjectError as error:
        pipe.send(str(error))
        raise SystemExit(1) from error


def write_to(log_file: str) -> None:
    """Send standard output and error to a file, native code's too: the terminal has the table."""
    descriptor = os.open(log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        os.dup2(descriptor, stream.fileno())
    os.close(descriptor)


class _Worker:
    """Holds what all trials of a process share."""

    def __init__(self, job: Job, stop: StopSignal, log: Logger) -> None:
        from src.tuning.phase import Search
        from src.tuning.search_data import load_data
        from src.tuning.space import depths
        from src.tuning.study import load_study
        from src.tuning.trial import Trials

        self.job, self.stop, self.log = job, stop, log
        self.params = job.params
        self.study = load_study(job.url, job.study, job.params.tune)
        self.data = load_data(subset=job.params.tune.subset, seed=job.params.train.seed)
        search = Search(self.data, start_for(job), log, depths=depths(job.params))
        self.trials = Trials(search)

    def work(self) -> None:
        """Claim and run trials while there are any to claim."""
        claim_and_run(
            self.study,
            self.job.url,
            self.params.tune,
            n_trials=self.job.n_trials,
            run=self._run,
            is_over=lambda: self.stop.is_set or self.job.is_late(),
            at_most=_TRIALS_A_PROCESS,
        )

    def _run(self, trial: "optuna.Trial", values: Mapping[str, Any]) -> float:
        """Train, and say in Optuna and MLflow how it ended; the trial's score."""
        import optuna

        from src.tracking.tuning_runs import TrialRun

        run = TrialRun(self.log)
        try:
            params = trial_params(self.params, values)
            self._begin(run, trial, params)
            with self.stop.interrupting():
                result = self._train(trial, params, run)
            value = self._finish(run, trial, result)
        except Stopped:
            trial.set_user_attr(budget.REASON, budget.STOPPED)
            run.end("killed", reason=budget.STOPPED)
            raise KeyboardInterrupt from None  # Optuna ends the trial and passes it on
        except optuna.TrialPruned:
            run.end("pruned", value=_last_value(trial))
            raise
        except Exception as error:
            reason = reason_of(error)
            self.log.warning(f"trial {trial.number} failed: {reason}", exc_info=True)
            run.end("failed", reason=reason)
            raise
        return value

    def _begin(self, run: "TrialRun", trial: "optuna.Trial", params: Params) -> None:
        run.begin(
            self._record(params),
            study=self.job.study,
            number=trial.number,
            study_run_id=self.job.study_run_id,
            retry_of=budget.retry_of(_frozen(trial)),
        )
        trial.set_user_attr("run_id", run.run_id)

    def _finish(self, run: "TrialRun", trial: "optuna.Trial", result: "TrialResult") -> float:
        value = score(result.fit, self.params.tune.objective)
        for name in (WEIGHTS, "best_epoch"):
            trial.set_user_attr(name, result.fit[name])
        self._keep_weights(trial, result, value, run)
        run.end("complete", fit=result.fit, value=value)
        return value

    def _train(self, trial: "optuna.Trial", params: Params, run: "TrialRun") -> "TrialResult":
        def hear(epoch: "Epoch") -> None:
            with self.stop.deferring():
                run.log_epoch(epoch.epoch, asdict(epoch))
                report(trial, getattr(epoch, params.tune.objective), epoch.epoch)

        return self.trials.run(params, hear)

    def _keep_weights(
        self, trial: "optuna.Trial", result: "TrialResult", value: float, run: "TrialRun"
    ) -> None:
        """What doesn't go to disk costs a warning: the trial's score stands."""
        try:
            self._save_weights(trial, result, value, run)
        except Exception as error:
            self.log.warning(
                f"the weights of trial {trial.number} aren't kept: {reason_of(error)}",
                exc_info=True,
            )

    def _save_weights(
        self, trial: "optuna.Trial", result: "TrialResult", value: float, run: "TrialRun"
    ) -> None:
        from src.model.saving import save_model
        from src.tuning.best import keep_if_best

        which, sha256 = self.params.tune.log_weights, str(result.fit[WEIGHTS])
        if which == "best":
            better = sign_of(self.params.tune.objective) * value
            keep_if_best(
                self.job.study_key,
                lambda file: save_model(result.model, file),
                number=trial.number,
                score=better,
                sha256=sha256,
            )
        elif which == "all":
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / "model.keras"
                save_model(result.model, file)
                run.log_weights(file, sha256)

    def _record(self, params: Params) -> "RunRecord":
        from src.data.dataset import dataset_identity, split_kind
        from src.model.class_weights import class_weights
        from src.tracking.records import RunRecord

        split = split_kind()
        weights = class_weights(self.data.train.labels, params.finetune.class_weights)
        return RunRecord(
            stage="finetune",
            params=params.sections("split", "model", "train", "finetune"),
            dataset=dataset_identity(self.data.train, self.data.val),
            class_weights=weights.as_dict(),
            schedule=params.finetune.schedule.model_dump(),
            initial_weights_sha256="",
            slide_disjoint=split.slide_disjoint,
            groups_are=split.groups_are,
        )


def report(trial: "optuna.Trial", value: float, epoch: int) -> None:
    """Tell Optuna an epoch's score.

    Raises
    ------
    TrialPruned
        The pruner wants the trial to end.
    """
    import optuna

    trial.report(value, step=epoch)
    if trial.should_prune():
        raise optuna.TrialPruned


def trial_params(params: Params, values: Mapping[str, Any]) -> Params:
    """The parameters a trial is run with: its values, and the epochs of a trial."""
    epochs = {} if params.tune.epochs is None else {"finetune.epochs": params.tune.epochs}
    return params.with_values({**epochs, **values})


def score(fit: Mapping[str, Any], objective: str) -> float:
    """The objective at the epoch whose weights are kept."""
    return float(fit["history"][fit["best_epoch"] - 1][objective])


def _last_value(trial: "optuna.Trial") -> float:
    values = _frozen(trial).intermediate_values
    return values[max(values)]


def _frozen(trial: "optuna.Trial") -> "FrozenTrial":
    return trial.study.get_trials(deepcopy=False)[trial.number]


def start_for(job: Job) -> "Environment":
    """Start TensorFlow with the job's threads."""
    from src.system.determinism import start_tensorflow

    os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")  # workers share the GPU
    runtime = job.params.runtime.model_copy(update={"threads": job.threads})
    return start_tensorflow(runtime, seed=job.params.train.seed)
