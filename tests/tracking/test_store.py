"""The store: created once, whole, where it was asked for; unreachable ones end in one line."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from src import paths
from src.tracking.store import EXPERIMENT, TrackingError, connect
from tests.tracking.support import point_paths_at

pytest_plugins = ("tests.tracking.fixtures",)

CONNECT = "from src.tracking.store import connect; print(connect().experiment_id)"


def start(code: str, root: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "DVC_ROOT": str(root)}
    environment.pop("MLFLOW_TRACKING_URI", None)
    return subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=paths.ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_two_processes_on_a_fresh_project_both_connect(tmp_path):
    """MLflow alone races: 'duplicate column name: step'."""
    processes = [start(CONNECT, tmp_path) for _ in range(2)]
    results = [(*process.communicate(timeout=120), process.returncode) for process in processes]
    assert results == [("1\n", "", 0)] * 2
    assert (tmp_path / "mlflow.db").is_file()
    assert not list(tmp_path.glob(".mlflow.db*"))


def test_artifacts_lie_under_the_tracking_root(store, store_root):
    """Not in ./mlruns of whoever connects first; a path with a space must work as well."""
    location = store.client.get_experiment(store.experiment_id).artifact_location
    assert location == (store_root / "mlruns" / EXPERIMENT).as_uri()


def test_copied_project_does_not_write_into_the_original(store_root, tmp_path, monkeypatch):
    """Artifact locations are absolute: a copied mlflow.db would fill the folder it came from."""
    (tmp_path / "mlflow.db").write_bytes((store_root / "mlflow.db").read_bytes())
    point_paths_at(tmp_path, monkeypatch)
    with pytest.raises(TrackingError, match="moved or copied"):
        connect()


def test_dead_server_is_one_line_without_password_within_seconds(monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://nurse:secret@127.0.0.1:{port}")
    started = time.monotonic()
    with pytest.raises(TrackingError) as caught:
        connect()
    message = str(caught.value)
    assert time.monotonic() - started < 30
    assert f"http://127.0.0.1:{port}" in message
    assert "start that server, or unset MLFLOW_TRACKING_URI" in message
    assert "secret" not in message
    assert "\n" not in message
