"""Files that a stage adds to a run which ended before."""

from collections.abc import Iterable
from pathlib import Path

from src.tracking.store import connect, reporting


def add_files(run_id: str, files: Iterable[Path], folder: str) -> None:
    """Log ``files`` as artifacts of a run, below ``folder``.

    Raises
    ------
    TrackingError
        The store doesn't take them.
    """
    store = connect()
    with reporting(f"did not take files of run {run_id}"):
        for file in files:
            store.client.log_artifact(run_id, str(file), folder)
