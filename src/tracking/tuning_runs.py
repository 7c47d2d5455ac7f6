"""One parent run a study and one nested run a trial, so that ``mlflow ui`` compares all trials.

The parent belongs to the process that opened it first; a second ``src.tune`` on the same study uses
it without ending it. Runs whose process is gone are ended as KILLED by whoever comes next.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from logging import Logger
from pathlib import Path
from typing import TYPE_CHECKING, Any

from src.system.nested import flatten
from src.tracking import pictures
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
from src.tracking.runs import MODEL_NAME, TrainingRun, describe
from src.tracking.store import Store, TrackingError, connect, reporting

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STUDY_STAGE = "tune"
TRIAL_STAGE = "trial"

_STATE = "trial_state"
_STATUS = {"complete": "FINISHED", "pruned": "FINISHED", "failed": "FAILED", "killed": "KILLED"}


@contextmanager
def study_run(
    study: str, *, key: str, params: Mapping[str, Any], tags: Mapping[str, str]
) -> Iterator[str]:
    """Begin, or go on with, the parent run of a study; yields its id.

    ``key`` tells studies apart that have the same name. Left as FINISHED, FAILED or KILLED.

    Raises
    ------
    TrackingError
        The store can't be reached.
    """
    store = connect()
    with reporting("did not take the run of a study"):
        close_dead()
        found = _run_of(store, key)
        if found is not None and found.info.status == "RUNNING":
            yield str(found.info.run_id)  # of another process, which will end it
            return
        all_tags = {
            "mlflow.source.name": "python -m src.tune",
            "mlflow.source.type": "LOCAL",
            "stage": STUDY_STAGE,
            "study": study,
            WORK_KEY: key,
            **tags,
        }
        run_id = _begin_again(store, found) if found else begin(store, f"tune {study}", all_tags)
        _log_params(store, run_id, params)
    with ending(store, run_id):
        yield run_id


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
                log_pictures(store, run_id, pictures.of_fit(fit))
            set_tags(store, run_id, tags)
            store.client.set_terminated(run_id, status=_STATUS[state])

    def log_weights(self, model_path: Path) -> None:
        """Log the trial's model."""
        if self._run is not None:
            with self._warning():
                log_trial_model(self._run.run_id, model_path)

    @contextmanager
    def _warning(self) -> Iterator[None]:
        try:
            yield
        except TrackingError as error:
            self._log.warning(f"{error}")


def log_trial_model(run_id: str, model_path: Path) -> None:
    """Log a model for a trial's run, in place of one logged before.

    Raises
    ------
    TrackingError
        The store doesn't take it.
    """
    store = connect()
    with reporting(f"did not take the model of run {run_id}"):
        delete_models(store, run_id)
        log_model(store, model_path, name=MODEL_NAME, run_id=run_id, extras={})


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
