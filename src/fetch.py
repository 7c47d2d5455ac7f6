"""Command: download Kaggle's archive into data/source and track it with DVC (``make data``).

Apart from ``ingest``, whose result doesn't depend on how its archive came here.
"""

import logging
import subprocess
import sys

from src import paths
from src.params import load_params
from src.system.cli import run
from src.system.errors import ProjectError
from src.system.log import configure, get_logger


def main() -> None:
    """Download Kaggle's archive into data/source and `dvc add` it."""
    configure(load_params().runtime.verbosity)
    fetch_archive(get_logger("fetch"))


def fetch_archive(log: logging.Logger) -> None:
    """Download Kaggle's archive into data/source and track it with DVC.

    Raises
    ------
    DownloadError
        No client, no credentials, no network, or the competition's rules are not accepted.
    ArchiveError
        What came, or what was there, isn't a sound zip.
    ProjectError
        It is there, but DVC doesn't track it.
    """
    from src.data.download import download_archive, kaggle_client

    archive = download_archive(paths.SAMPLE_ARCHIVE.parent, kaggle_client(), log)
    relative = archive.relative_to(paths.ROOT)
    done = subprocess.run([sys.executable, "-m", "dvc", "add", str(relative)], cwd=paths.ROOT)
    if done.returncode:
        raise ProjectError(f"downloaded, but not tracked; run: dvc add {relative}")
    log.info(
        f"{relative} is there and tracked; next: cp presets/kaggle.yaml params.yaml, dvc repro"
    )


if __name__ == "__main__":
    run(main)
