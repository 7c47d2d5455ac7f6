"""One parent run a study and one nested run a trial, so that ``mlflow ui`` compares all trials.

The parent belongs to the process that opened it first; a second ``src.tune`` on the same study uses
it without ending it. Runs whose process is gone are ended as KILLED by whoever comes next.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from logging import Logger
from pathlib import Path
from typing import TYPE_CHECKING, Any

from src.system.log import get_logger
from src.system.nested import flatten
from src.tracking.lifecycle import (
    PARAMS_A_BATCH,
    batches,
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

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STUDY_STAGE = "tune"
TRIAL_STAGE = "trial"

_STATE = "trial_state"
_MODEL = "model_weights_sha256"  # of the model the run has
_BEST_MODEL_RUN = "best_model_run_id"
_STATUS = {"complete": "FINISHED", "pruned": "FINISHED", "failed": "FAILED", "killed": "KILLED"}


@contextmanager
def study_run(
    study: str,
    *,
    key: str,
    params: Mapping[str, Any],
    tags: Mapping[str, str],
    alone: Callable[[], AbstractContextManager[Any]],
) -> Iterator[str]:
    """Begin, or go on with, the parent run of a study; yields its id.

    ``key`` tells studies apart that have the same name. ``alone`` is a lock that all processes of
    the study share: of several that start at once, one begins the run. Left as FINISHED, FAILED or
    KILLED.

    Raises
    ------
    TrackingError
        The store can't be reached.
    """
    store = connect()
    with reporting("did not take the run of a study"), alone():
        close_dead()
        run = _run_of(store, key)
        is_joined = run is not None and run.info.status == "RUNNING"
        run_id = str(run.info.run_id) if is_joined else _begin_study(store, run, study, key, tags)
        if not is_joined:
            _log_params(store, run_id, params)
    with _joined(store, run_id) if is_joined else _ending(store, run_id):
        yield run_id


def _begin_study(store: Store, run: Any, study: str, key: str, tags: Mapping[str, str]) -> str:
    if run is not None:
        return _begin_again(store, run)
    all_tags = {
        "mlflow.source.name": "python -m src.tune",
        "mlflow.source.type": "LOCAL",
        "stage": STUDY_STAGE,
        "study": study,
        WORK_KEY: key,
        **tags,
    }
    return begin(store, f"tune {study}", all_tags)


@contextmanager
def _ending(store: Store, run_id: str) -> Iterator[None]:
    """End the run; a store that is gone by then costs a warning, not what the study found."""
    is_done = False
    try:
        with ending(store, run_id):
            yield
            is_done = True
    except TrackingError as error:
        if not is_done:
            raise
        get_logger("tracking").warning(f"{error}; it is ended at the next start")


@contextmanager
def _joined(store: Store, run_id: str) -> Iterator[None]:
    """Leave the run to the process that began it, unless that is gone: killed, it had not ended."""
    yield
    try:
        with reporting(f"did not take the end of run {run_id}"):
            close_dead()
            if store.client.get_run(run_id).info.status in ("KILLED", "FAILED"):
                store.client.set_terminated(run_id, status="FINISHED")
    except TrackingError as error:
        get_logger("tracking").warning(f"{error}")


def _run_of(store: Store, key: str) -> Any:
    found = store.client.search_runs(
        [store.experiment_id],
        filter_string=f"tags.{WORK_KEY} = '{key}' and tags.stage = '{STUDY_STAGE}'",
        order_by=["attributes.start_time DESC"],
        max_results=1,
    )
    return found[0] if found else None


def _begin_again(store: Store, run: Any) -> str:
    run_id = str(run.info.run_id)
    set_tags(store, run_id, process_tags())
    store.client.update_run(run_id, status="RUNNING")
    return run_id


def _log_params(store: Store, run_id: str, params: Mapping[str, Any]) -> None:
    from mlflow.entities import Param

    known = store.client.get_run(run_id).data.params
    entities = [
        Param(name, str(value)[:LONGEST_PARAM])
        for name, value in flatten(params).items()
        if name not in known  # a budget may be raised, but MLflow's params can't be
    ]
    for batch in batches(entities, PARAMS_A_BATCH):
        store.client.log_batch(run_id, params=batch)


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

    def begin(
        self,
        record: RunRecord,
        *,
        study: str,
        number: int,
        study_run_id: str,
        retry_of: int | None,
    ) -> None:
        """Create the run, with all that is known before anything is trained."""
        tags = {
            **run_tags(record),
            "mlflow.source.name": "python -m src.tune",
            "mlflow.parentRunId": study_run_id,
            "stage": TRIAL_STAGE,
            "study": study,
            "trial": str(number),
            _STATE: "running",
            **({"retry_of": str(retry_of)} if retry_of is not None else {}),
        }
        with self._warning():
            store = connect()
            with reporting("did not take a new run"):
                run_id = begin(store, f"trial {number}", tags)
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
        with self._warning(), reporting(f"did not take the end of run {run_id}"):
            if value is not None:
                log_metrics(store, run_id, {"objective": value})
            tags = {_STATE: state, **({"reason": reason} if reason else {})}
            if fit is not None:
                tags["final_weights_sha256"] = str(fit["final_weights_sha256"])
                best = fit["history"][fit["best_epoch"] - 1]
                summary = {f"best_{name}": best[name] for name in ("val_auroc", "val_loss")}
                log_metrics(store, run_id, {**summary, "best_epoch": fit["best_epoch"]})
                log_pictures(store, run_id, pictures_of_fit(fit))
            set_tags(store, run_id, tags)
            store.client.set_terminated(run_id, status=_STATUS[state])

    def log_weights(self, model_path: Path, sha256: str) -> None:
        """Log the trial's model; ``sha256`` is the digest of its weights."""
        if self._store is None or self._run is None:
            return
        with self._warning(), reporting(f"did not take the model of run {self._run.run_id}"):
            _log_model(self._store, self._run.run_id, model_path, sha256)

    @contextmanager
    def _warning(self) -> Iterator[None]:
        try:
            yield
        except TrackingError as error:
            self._log.warning(f"{error}")


def has_model(run_id: str, sha256: str) -> bool:
    """Whether a trial's run has the model with these weights.

    Raises
    ------
    TrackingError
        The store can't say.
    """
    store = connect()
    with reporting(f"can't read run {run_id}"):
        return bool(store.client.get_run(run_id).data.tags.get(_MODEL) == sha256)


def log_best_model(study_run_id: str, run_id: str, model_path: Path, *, sha256: str) -> None:
    """Log the model of a study's best trial, in place of the one that was best before.

    Raises
    ------
    TrackingError
        The store doesn't take it.
    """
    store = connect()
    with reporting(f"did not take the model of run {run_id}"):
        former = store.client.get_run(study_run_id).data.tags.get(_BEST_MODEL_RUN)
        _log_model(store, run_id, model_path, sha256)
        set_tags(store, study_run_id, {_BEST_MODEL_RUN: run_id})
        if former is not None and former != run_id:
            delete_models(store, former)
            set_tags(store, former, {_MODEL: ""})


def _log_model(store: Store, run_id: str, model_path: Path, sha256: str) -> None:
    delete_models(store, run_id)
    log_model(store, model_path, name=MODEL_NAME, run_id=run_id, extras={})
    set_tags(store, run_id, {_MODEL: sha256})  # last: the model is whole


def log_study(
    run_id: str,
    *,
    metrics: Mapping[str, float],
    tags: Mapping[str, str],
    folder: Path,
    figures: "Mapping[str, Figure]",
) -> None:
    """Log what a study found: best values, pictures, and the files of its report.

    Raises
    ------
    TrackingError
        The store doesn't take it.
    """
    store = connect()
    with reporting(f"did not take the result of run {run_id}"):
        log_metrics(store, run_id, metrics)
        log_pictures(store, run_id, figures)
        for file in sorted(folder.iterdir()):
            if file.suffix in (".yaml", ".csv", ".html", ".json"):
                store.client.log_artifact(run_id, str(file), "report")
        set_tags(store, run_id, tags)
