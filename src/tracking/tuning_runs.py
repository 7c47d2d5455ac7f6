"""One parent run per study and one nested run per trial, so that ``mlflow ui`` compares all trials.

Several commands may work on a study: they share its run, which each sets RUNNING when it begins and
ends when it leaves. Runs whose process is gone are ended as KILLED by whoever comes next.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from logging import Logger
from pathlib import Path
from typing import Any

from src.system.log import get_logger
from src.system.nested import flatten
from src.tracking.lifecycle import (
    begin,
    close_orphans,
    ending,
    log_metrics,
    log_pictures,
    process_tags,
    set_tags,
)
from src.tracking.logged_models import delete_models, log_model
from src.tracking.records import LONGEST_PARAM, WORK_KEY, RunRecord, run_tags
from src.tracking.runs import MODEL_NAME, TrainingRun, describe, pictures_of_fit
from src.tracking.store import Store, TrackingError, connect, reporting

STUDY_STAGE = "tune"
TRIAL_STAGE = "trial"

_STATE = "trial_state"
_HAS_MODEL = "has_model"
_SOURCE = {"mlflow.source.name": "python -m src.tune", "mlflow.source.type": "LOCAL"}
_STATUS = {"complete": "FINISHED", "pruned": "FINISHED", "failed": "FAILED", "killed": "KILLED"}


def open_study_run(
    study: str, *, key: str, params: Mapping[str, Any], tags: Mapping[str, str]
) -> str:
    """Begin the parent run of a study, or set it RUNNING again; its id.

    ``key`` tells studies of the same name apart. The caller holds the study's lock, so that of
    several commands that start at once one begins the run.

    Raises
    ------
    TrackingError
        The store can't be reached.
    """
    store = connect()
    with reporting("did not take the run of a study"):
        close_dead()
        of_study = f"tags.{WORK_KEY} = '{key}' and tags.stage = '{STUDY_STAGE}'"
        found = store.client.search_runs([store.experiment_id], of_study, max_results=1)
        if found:
            run_id = str(found[0].info.run_id)
            set_tags(store, run_id, process_tags())
            store.client.update_run(run_id, status="RUNNING")
            return run_id
        all_tags = {"stage": STUDY_STAGE, "study": study, WORK_KEY: key, **_SOURCE, **tags}
        run_id = begin(store, f"tune {study}", all_tags)
        for name, value in flatten(params).items():
            store.client.log_param(run_id, name, str(value)[:LONGEST_PARAM])
        return run_id


@contextmanager
def ending_study_run(run_id: str) -> Iterator[None]:
    """End the run, and those of dead workers; a store that is gone by then costs a warning."""
    is_done = False
    try:
        with ending(connect(), run_id):
            yield
            is_done = True
    except TrackingError as error:
        if not is_done:
            raise
        get_logger("tracking").warning(f"{error}; it is ended at the next start")
    finally:
        with suppress(TrackingError):  # the next command closes them
            close_dead()


def close_dead() -> None:
    """End as KILLED what processes that are gone left RUNNING: studies and trials."""
    store = connect()
    with reporting("can't be searched"):
        for stage in (STUDY_STAGE, TRIAL_STAGE):
            close_orphans(store, stage)


class TrialRun:
    """The nested run of a trial. A store that doesn't answer costs a warning, not the trial."""

    def __init__(self, log: Logger) -> None:
        self._log = log
        self._store: Store | None = None
        self._run: TrainingRun | None = None

    @property
    def run_id(self) -> str | None:
        """The run's id; None where the store didn't take it."""
        return self._run.run_id if self._run is not None else None

    def begin(self, record: RunRecord, *, parent_run_id: str, tags: Mapping[str, str]) -> None:
        """Create the run, with all that is known before anything is trained.

        ``tags``: ``study``, ``trial`` (its number), and ``retry_of`` where it stands in for one.
        """
        about = {"mlflow.parentRunId": parent_run_id, "stage": TRIAL_STAGE, _STATE: "running"}
        with self._warning("did not take a new run"):
            store = connect()
            all_tags = {**run_tags(record), **_SOURCE, **about, **tags}
            run_id = begin(store, f"trial {tags['trial']}", all_tags)
            self._store, self._run = store, TrainingRun(store, run_id)
            describe(store, run_id, record)

    def log_epoch(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """Log the metrics of one epoch, counted from 1."""
        if self._run is not None:
            self._run.log_epoch(epoch, metrics)

    def end(
        self,
        state: str,
        *,
        fit: Mapping[str, Any] | None = None,
        value: float | None = None,
        reason: str = "",
    ) -> None:
        """End the run: ``complete`` and ``pruned`` as FINISHED, ``failed``, ``killed``."""
        if self._store is None or self._run is None:
            return
        store, run_id = self._store, self._run.run_id
        with self._warning(f"did not take the end of run {run_id}"):
            tags = {_STATE: state, **({"reason": reason} if reason else {})}
            metrics = {} if value is None else {"objective": value}
            if fit is not None:
                tags["final_weights_sha256"] = str(fit["final_weights_sha256"])
                best = fit["history"][fit["best_epoch"] - 1]
                metrics |= {f"best_{name}": best[name] for name in ("val_auroc", "val_loss")}
                metrics["best_epoch"] = fit["best_epoch"]
                log_pictures(store, run_id, pictures_of_fit(fit))
            log_metrics(store, run_id, metrics)
            set_tags(store, run_id, tags)
            store.client.set_terminated(run_id, status=_STATUS[state])

    def log_model(self, model_path: Path) -> None:
        """Log the trial's model."""
        if self._store is None or self._run is None:
            return
        run_id = self._run.run_id
        with self._warning(f"did not take the model of run {run_id}"):
            log_model(self._store, model_path, name=MODEL_NAME, run_id=run_id, extras={})
            set_tags(self._store, run_id, {_HAS_MODEL: "yes"})

    @contextmanager
    def _warning(self, what_failed: str) -> Iterator[None]:
        try:
            with reporting(what_failed):
                yield
        except TrackingError as error:
            self._log.warning(f"{error}")


def log_study(
    run_id: str,
    *,
    metrics: Mapping[str, float],
    tags: Mapping[str, str],
    folder: Path,
    only_model_of: str | None,
) -> None:
    """Log what a study found: numbers, and the files of its report.

    With ``only_model_of`` (a trial's run), the models of trials that were the best before it are
    deleted.

    Raises
    ------
    TrackingError
        The store doesn't take it.
    """
    store = connect()
    with reporting(f"did not take the result of run {run_id}"):
        log_metrics(store, run_id, metrics)
        store.client.log_artifacts(run_id, str(folder), "report")
        set_tags(store, run_id, tags)
        if only_model_of is not None:
            of_study = f"tags.mlflow.parentRunId = '{run_id}' and tags.{_HAS_MODEL} = 'yes'"
            for run in store.client.search_runs([store.experiment_id], of_study):
                if run.info.run_id != only_model_of:
                    delete_models(store, run.info.run_id)
                    set_tags(store, run.info.run_id, {_HAS_MODEL: "no"})
