"""The runs of ``explore``, ``train`` and ``finetune``: begun, filled, ended, restored, added to.

A store that goes away while a model trains costs a warning, not the training.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, Run
from mlflow.exceptions import MlflowException

from src import paths
from src.system.durable import read_json, verify_folder
from src.system.log import get_logger
from src.tracking import lineage
from src.tracking.lifecycle import (
    METRICS_A_BATCH,
    PARAMS_A_BATCH,
    batches,
    begin,
    ending,
    log_metrics,
    log_pictures,
    metrics_at,
    open_run,
    set_tags,
)
from src.tracking.logged_models import delete_models, log_model
from src.tracking.records import RunRecord, flat_metrics, run_name, run_params, run_tags
from src.tracking.store import Store, cause_of, connect, is_absent, reporting

__all__ = ["RunRecord", "TrainingRun", "add_evaluation", "ensure_run", "training_run"]

MODEL_NAME = "resnet50"

_TRY_AGAIN_AFTER_S = 60.0
_FINAL_WEIGHTS = "final_weights_sha256"


class TrainingRun:
    """A run that is being filled."""

    def __init__(self, store: Store, run_id: str) -> None:
        self.run_id = run_id
        self._store = store
        self._unsent: list[Metric] = []
        self._known = _logged_points(store, run_id)
        self._is_warned = False
        self._try_again_at = 0.0
        self._log = get_logger("tracking")

    def log_epoch(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """Log the metrics of one epoch, counted from 1, with ``learning_rate`` among them.

        What the run already holds of that epoch is not logged twice. Where the store doesn't answer
        they stay in memory and go with a later call.
        """
        self._keep(epoch, metrics)
        if time.monotonic() < self._try_again_at:
            return
        try:
            self._send()
        except MlflowException as error:
            self._try_again_at = time.monotonic() + _TRY_AGAIN_AFTER_S
            self._warn_once(error)

    def log_result(
        self,
        fit: Mapping[str, Any],
        timing: Mapping[str, Any],
        model_path: Path,
        pictures_: Mapping[str, Figure],
    ) -> None:
        """Log what ``fit.json`` and ``timing.json`` say, the pictures, and the model, once.

        Raises
        ------
        TrackingError
            The store doesn't take it; ``register`` logs the run anew from the files then.
        """
        for row, epoch_s in zip(fit["history"], timing["epoch_s"], strict=True):
            self._keep(row["epoch"], {**row, "epoch_s": epoch_s})
        self._keep(0, _summary(fit, timing))
        with reporting(f"did not take the result of run {self.run_id}"):
            self._send()
            logged = self._store.client.get_run(self.run_id).data.tags
            if logged.get(_FINAL_WEIGHTS) == fit["final_weights_sha256"]:
                return
            environment = {**lineage.software(), **fit["environment"]}
            self._store.client.log_dict(self.run_id, dict(fit), "fit.json")
            self._store.client.log_dict(self.run_id, environment, "env.json")
            log_pictures(self._store, self.run_id, {**pictures_of_fit(fit), **pictures_})
            delete_models(self._store, self.run_id)
            log_model(self._store, model_path, name=MODEL_NAME, run_id=self.run_id, extras={})
            tags = {f"env.{name}": str(value) for name, value in environment.items()}
            tags[_FINAL_WEIGHTS] = fit["final_weights_sha256"]
            set_tags(self._store, self.run_id, tags)  # last: the result is whole

    def _keep(self, step: int, metrics: Mapping[str, float]) -> None:
        values = {
            name: value
            for name, value in metrics.items()
            if name != "epoch" and (name, step) not in self._known
        }
        self._unsent += metrics_at(values, step=step)
        self._known |= {(name, step) for name in values}

    def _send(self) -> None:
        for batch in batches(self._unsent, METRICS_A_BATCH):
            self._store.client.log_batch(self.run_id, metrics=batch)
        self._unsent = []

    def _warn_once(self, error: Exception) -> None:
        if not self._is_warned:
            self._is_warned = True
            self._log.warning(
                f"MLflow doesn't take metrics now ({cause_of(error)}); training goes on, "
                "they are kept and sent later"
            )


@contextmanager
def training_run(record: RunRecord, *, fresh: bool = False) -> Iterator[TrainingRun]:
    """Begin a run and end it as FINISHED, FAILED (an error) or KILLED (Ctrl-C, SIGTERM).

    Runs of this stage that are RUNNING although their process is gone (kill -9) are ended first.
    The run of the same work (``record.work_key``) is gone on with, unless ``fresh``.

    Raises
    ------
    TrackingError
        The store can't be reached, or doesn't take the start or the end of the run.
    """
    work_key = "" if fresh else record.work_key
    opened = open_run(record.stage, run_name(record), run_tags(record), work_key=work_key)
    with opened as (store, run_id):
        with reporting(f"did not take the parameters of run {run_id}"):
            describe(store, run_id, record)
        yield TrainingRun(store, run_id)


def ensure_run(folder: Path) -> str:
    """The id of the run that made a model folder, logged anew where the store has lost it.

    The store knows the run of ``run.json`` after training; it doesn't when ``mlflow.db`` was
    deleted, or DVC fetched the folder from its cache. Then a run is made from ``run.json``,
    ``fit.json`` and ``model.keras``, tagged ``restored``, and the head's run before it.
    """
    run = read_json(folder / "run.json")
    record, run_id = RunRecord(**run["record"]), str(run["run_id"])
    store = connect()
    run_found = find_run(run_id)
    with reporting("can't be searched"):
        is_here = run_found is not None and run_found.info.lifecycle_stage == "active"
        known = run_id if is_here else _restored(store, run_id)
    return known if known is not None else _restore(store, folder, record, run_id)


def find_run(run_id: str) -> Run | None:
    """A run, deleted or not; None where the store doesn't know it.

    Raises
    ------
    TrackingError
        The store can't be reached.
    """
    if is_absent():
        return None
    store = connect()
    with reporting("can't be searched"):
        try:
            return store.client.get_run(run_id)
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise


def add_evaluation(
    run_id: str,
    metrics: Mapping[str, Any],
    pictures_: Mapping[str, Figure],
    tags: Mapping[str, str],
) -> None:
    """Add what ``evaluate`` found to a run: numbers (nested names are joined by dots), pictures.

    Raises
    ------
    TrackingError
        The store doesn't take it.
    """
    store = connect()
    with reporting(f"did not take the evaluation of run {run_id}"):
        log_metrics(store, run_id, flat_metrics(metrics))
        log_pictures(store, run_id, pictures_)
        set_tags(store, run_id, tags)


def add_files(run_id: str, files: Iterable[Path], folder: str) -> None:
    """Log ``files`` as artifacts of a run that ended before, below ``folder``.

    Raises
    ------
    TrackingError
        The store doesn't take them.
    """
    store = connect()
    with reporting(f"did not take files of run {run_id}"):
        for file in files:
            store.client.log_artifact(run_id, str(file), folder)


def log_exploration(
    data: Mapping[str, str], report: Mapping[str, Any], folder: Path, *, stage: str = "explore"
) -> str:
    """The one run of ``explore``: numbers of ``explore.json`` and all files of ``folder``; its id.

    ``data`` are tags that name the data.

    Raises
    ------
    TrackingError
        The store can't be reached, or doesn't take the run.
    """
    origin = {name: value for name, value in lineage.origin().items() if value}
    tags = {
        "mlflow.source.name": f"python -m src.{stage}",
        "mlflow.source.type": "LOCAL",
        "mlflow.source.git.commit": origin["git_commit"],
        "stage": stage,
        **origin,
        **data,
    }
    with open_run(stage, stage, tags) as (store, run_id):
        with reporting(f"did not take the result of run {run_id}"):
            log_metrics(store, run_id, flat_metrics(report))
            store.client.log_artifacts(run_id, str(folder), stage)
        return run_id


def run_with_metrics(folder: Path, metrics: Mapping[str, Any]) -> str:
    """The run that made a model, restored if need be, with the metrics of its evaluation."""
    run_id = ensure_run(folder)
    run = find_run(run_id)
    logged = {} if run is None else run.data.metrics
    if any(logged.get(name) != value for name, value in flat_metrics(metrics).items()):
        add_evaluation(run_id, metrics, {}, {})
    return run_id


def describe(store: Store, run_id: str, record: RunRecord) -> None:
    """Log parameters, class weights and data set, known before anything is trained."""
    params = [Param(name, value) for name, value in run_params(record).items()]
    for batch in batches(params, PARAMS_A_BATCH):
        store.client.log_batch(run_id, params=batch)
    store.client.log_dict(run_id, dict(record.class_weights), "class_weights.json")
    dataset = record.dataset
    entity = Dataset(
        name=dataset["name"],
        digest=dataset["digest"],
        source_type="local",
        source=json.dumps({"uri": dataset["source"]}),
        profile=json.dumps({"n_train": dataset["n_train"], "n_val": dataset["n_val"]}),
    )
    used = DatasetInput(entity, [InputTag("mlflow.data.context", "training")])
    store.client.log_inputs(run_id, datasets=[used])


def _restored(store: Store, run_id: str) -> str | None:
    found = store.client.search_runs(
        [store.experiment_id],
        filter_string=f"attributes.status = 'FINISHED' and tags.restored_from = '{run_id}'",
        max_results=1,
    )
    return str(found[0].info.run_id) if found else None


def _restore(store: Store, folder: Path, record: RunRecord, lost_run_id: str) -> str:
    verify_folder(folder)
    if record.parent_run_id is not None:
        record = _with_parent(record, folder.with_name(paths.HEAD_MODEL.name))
    with reporting("did not take a restored run"):
        tags = {"restored": "true", "restored_from": lost_run_id}
        run_id = begin(store, run_name(record), {**run_tags(record), **tags})
    with ending(store, run_id):
        with reporting(f"did not take the parameters of run {run_id}"):
            describe(store, run_id, record)
        fit, timing = (read_json(folder / name) for name in ("fit.json", "timing.json"))
        TrainingRun(store, run_id).log_result(fit, timing, folder / "model.keras", {})
    get_logger("tracking").info(
        f"run {lost_run_id} of {record.stage} is not in the store: logged anew as {run_id}"
    )
    return run_id


def _with_parent(record: RunRecord, head: Path) -> RunRecord:
    """The record with its head's present run, where the head's folder lies beside it."""
    is_its_head = (head / "run.json").is_file() and (
        read_json(head / "run.json")["run_id"] == record.parent_run_id
    )
    if not is_its_head:
        return record
    return RunRecord(**{**record.to_json(), "parent_run_id": ensure_run(head)})


def _logged_points(store: Store, run_id: str) -> set[tuple[str, int]]:
    """Name and step of every metric the run already holds; none where it was just begun."""
    with reporting(f"can't read run {run_id}"):
        names = store.client.get_run(run_id).data.metrics
        return {
            (name, int(point.step))
            for name in names
            for point in store.client.get_metric_history(run_id, name)
        }


def _summary(fit: Mapping[str, Any], timing: Mapping[str, Any]) -> dict[str, float]:
    """Numbers that compare runs at a glance: the best epoch's, counts and wall time."""
    best = next(row for row in fit["history"] if row["epoch"] == fit["best_epoch"])
    scores = {f"best_{name}": value for name, value in best.items() if name.startswith("val_")}
    counts = {
        name: fit[name] for name in ("best_epoch", "trainable_parameters", "total_parameters")
    }
    others = {"wall_s": timing["wall_s"], "stopped_early": int(fit["stopped_early"])}
    return flat_metrics({**scores, **counts, **others})


def pictures_of_fit(fit: Mapping[str, Any]) -> dict[str, Figure]:
    """``lr_schedule``: the learning rate of each epoch, drawn from ``fit.json`` alone."""
    epochs = [row["epoch"] for row in fit["history"]]
    rates = [row["learning_rate"] for row in fit["history"]]
    figure = Figure(figsize=(6, 3.5), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    axes.plot(epochs, rates, color="#0072B2", marker="o", markersize=4)
    axes.axvline(fit["best_epoch"], color="0.6", linestyle="--", label="best epoch")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("epoch")
    axes.set_ylabel("learning rate")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    name = fit["schedule"].get("name", "schedule")
    axes.set_title(f"{name}: at most {max(rates):.2g}, {rates[-1]:.2g} in the last epoch")
    axes.legend()
    return {"lr_schedule": figure}
