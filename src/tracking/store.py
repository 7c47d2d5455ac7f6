"""Where runs and versions are kept: the MLflow store, created once, reached or refused in one line.

``sqlite:///<root>/mlflow.db`` with artifacts in ``mlruns/``, unless ``MLFLOW_TRACKING_URI`` names
another store.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INTERNAL_ERROR, INVALID_PARAMETER_VALUE

from src import paths
from src.system.durable import replacing
from src.system.errors import ProjectError
from src.system.locks import taking_turns
from src.system.log import get_logger

EXPERIMENT = "histopathologic-cancer-detection"

_LONGEST_CAUSE = 200


class TrackingError(ProjectError):
    """The tracking store can't be reached, lacks what was asked for, or refused to take it."""


@dataclass(frozen=True)
class Store:
    """An open store: MLflow's client and the id of this project's experiment."""

    client: MlflowClient
    experiment_id: str
    uri: str


def connect() -> Store:
    """Open the store; the first caller creates database and experiment, others wait for it.

    Raises
    ------
    TrackingError
        It can't be reached, or belongs to a project folder elsewhere.
    """
    uri = tracking_uri()
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    with reporting("can't be opened"):
        _create_database(uri)
        client = _client(uri)
        return Store(client, _experiment_id(client), uri)


def tracking_uri() -> str:
    """URI of the store that is used, credentials included: don't print it."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{paths.MLFLOW_DB}"


def is_absent() -> bool:
    """Whether the store is a database file that doesn't exist yet."""
    database = _database_file(tracking_uri())
    return database is not None and not database.exists()


@contextmanager
def reporting(what_failed: str) -> Iterator[None]:
    """Turn what MLflow raises inside into one line that names the store and the way out."""
    try:
        yield
    except (MlflowException, OSError) as error:
        raise TrackingError(
            f"tracking store {_shown(tracking_uri())} {what_failed}: {cause_of(error)}; "
            f"{_way_out(tracking_uri())}"
        ) from error


def cause_of(error: Exception) -> str:
    """An exception's text as one short line without credentials."""
    text = " ".join(str(error).split())
    shortened = text if len(text) <= _LONGEST_CAUSE else text[:_LONGEST_CAUSE] + "…"
    return _shown(shortened)


def _shown(text: str) -> str:
    return re.sub(r"://[^/@\s]+@", "://", text)


def _way_out(uri: str) -> str:
    if _database_file(uri) is not None:
        return "check that the folder can be written and the disk isn't full, then run again"
    return "start that server, or unset MLFLOW_TRACKING_URI to use mlflow.db"


def _client(uri: str) -> MlflowClient:
    # registry_uri too: MLFLOW_REGISTRY_URI or an earlier set_registry_uri must not split the two
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def _database_file(uri: str) -> Path | None:
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None


def _create_database(uri: str) -> None:
    """Create an SQLite store whole or not at all.

    Two processes that create MLflow's tables at once race, and one killed meanwhile leaves tables
    that no later start can complete.
    """
    database = _database_file(uri)
    if database is None or database.exists():
        return
    waiting = "waiting for another process, which creates mlflow.db"
    with taking_turns(paths.TRACKING_LOCK, waiting=waiting, log=get_logger("tracking")):
        if not database.exists():
            with replacing(database) as temporary:
                _client(f"sqlite:///{temporary}").search_experiments(max_results=1)


def _experiment_id(client: MlflowClient) -> str:
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        _create_experiment(client)
        experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment.lifecycle_stage != "active":
        raise TrackingError(
            f"experiment {EXPERIMENT} was deleted; restore it with: "
            f"mlflow experiments restore --experiment-id {experiment.experiment_id}"
        )
    expected = _artifact_location()
    if expected is not None and experiment.artifact_location != expected:
        raise TrackingError(
            f"{paths.MLFLOW_DB} keeps its files in {experiment.artifact_location}, expected "
            f"{expected}: the project was moved or copied; move it back, or rename mlflow.db and "
            "run: dvc repro --single-item --force register predict"
        )
    return str(experiment.experiment_id)


def _create_experiment(client: MlflowClient) -> None:
    try:
        client.create_experiment(EXPERIMENT, artifact_location=_artifact_location())
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":  # another process was faster
            raise


def _artifact_location() -> str | None:
    """Where files of the default store lie, absolute; None = the named store chooses."""
    if os.environ.get("MLFLOW_TRACKING_URI"):
        return None
    return (paths.MLFLOW_ARTIFACTS / EXPERIMENT).as_uri()


def refusal(message: str, *, is_request_at_fault: bool) -> MlflowException:
    """What makes MLflow's server answer with status 400 (or 500) and ``message``, nothing else.

    Left alone, the server would put the whole request into the answer, base64 and all.
    """
    code = INVALID_PARAMETER_VALUE if is_request_at_fault else INTERNAL_ERROR
    error = MlflowException(message, error_code=code)
    answer = error.serialize_as_json()
    error.serialize_as_json = lambda: answer
    return error
