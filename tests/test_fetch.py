"""The download, from the command to the tracked file; Kaggle itself is in tests/data."""

import logging
import subprocess
import sys
from pathlib import Path

import pytest

from src import fetch, ingest, paths
from src.data import download
from src.system.cli import run
from src.system.errors import ProjectError
from tests.data.archives import tiny_files, write_zip

LOG = logging.getLogger("test.fetch")


class Client:
    def competition_download_files(self, competition: str, path: str, **_: bool) -> None:
        write_zip(Path(path) / f"{competition}.zip", tiny_files())


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    monkeypatch.setattr(paths, "SAMPLE_ARCHIVE", tmp_path / "data" / "source" / "sample.zip")
    monkeypatch.setattr(download, "kaggle_client", Client)
    return tmp_path


def test_archive_is_fetched_and_tracked(
    project: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Catches a download that DVC doesn't know: the next clone would lack the data."""
    ran: list[tuple[list[str], Path]] = []

    def run(command: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
        ran.append((command, cwd))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(fetch.subprocess, "run", run)
    with caplog.at_level("INFO"):
        fetch.fetch_archive(LOG)
    archive = f"data/source/{download.ARCHIVE}"
    assert (project / archive).is_file()
    assert ran == [([sys.executable, "-m", "dvc", "add", archive], project)]
    assert "cp presets/kaggle.yaml params.yaml" in caplog.messages[-1]


@pytest.mark.usefixtures("project")
def test_untracked_download_says_what_is_left_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = subprocess.CompletedProcess([], 1)
    monkeypatch.setattr(fetch.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(
        ProjectError, match=rf"not tracked; run: dvc add data/source/{download.ARCHIVE}"
    ):
        fetch.fetch_archive(LOG)


def test_ingest_download_is_the_same_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches `python -m src.ingest --download` and `make data` going nowhere."""
    called: list[list[str]] = []

    def call(command: list[str], **_: object) -> int:
        called.append(command)
        return 3

    monkeypatch.setattr(sys, "argv", ["ingest", "--download"])
    monkeypatch.setattr(ingest.subprocess, "call", call)
    with pytest.raises(SystemExit) as ended:
        run(ingest.main)
    assert ended.value.code == 3
    assert called == [[sys.executable, "-m", "src.fetch"]]
