"""The one run of ``explore``: its pictures and numbers, beside the training runs they explain."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from src.tracking import lineage
from src.tracking.lifecycle import log_metrics, open_run
from src.tracking.records import flat_metrics
from src.tracking.store import Store, reporting

STAGE = "explore"


class ExplorationRun:
    """A run that waits for its result."""

    def __init__(self, store: Store, run_id: str) -> None:
        self.run_id = run_id
        self._store = store

    def log_result(self, report: Mapping[str, Any], folder: Path) -> None:
        """Log the numbers of ``explore.json`` as metrics, and all files of ``folder``.

        Raises
        ------
        TrackingError
            The store doesn't take it.
        """
        with reporting(f"did not take the result of run {self.run_id}"):
            log_metrics(self._store, self.run_id, flat_metrics(report))
            self._store.client.log_artifacts(self.run_id, str(folder), STAGE)


@contextmanager
def exploration_run(data: Mapping[str, str]) -> Iterator[ExplorationRun]:
    """Begin the run of ``explore`` and end it as what it was; ``data`` are tags that name the data.

    Raises
    ------
    TrackingError
        The store can't be reached, or doesn't take the start or the end of the run.
    """
    origin = {name: value for name, value in lineage.origin().items() if value}
    tags = {
        "mlflow.source.name": f"python -m src.{STAGE}",
        "mlflow.source.type": "LOCAL",
        "stage": STAGE,
        **origin,
        **data,
    }
    if "git_commit" in origin:
        tags["mlflow.source.git.commit"] = origin["git_commit"]
    with open_run(STAGE, STAGE, tags) as (store, run_id):
        yield ExplorationRun(store, run_id)
