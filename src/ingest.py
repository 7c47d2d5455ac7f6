"""Stage ``ingest``: the archive's images to packed pixels and one table of patches."""

from __future__ import annotations

import subprocess
import sys
from typing import Annotated

import typer

from src import paths
from src.params import load_params
from src.system.cli import run
from src.system.errors import ProjectError
from src.system.log import configure, get_logger


def main(
    download: Annotated[
        bool, typer.Option("--download", help="Fetch Kaggle's archive, `dvc add` it, and stop.")
    ] = False,
) -> None:
    """Read the archive of ingest.archive into data/ingest, checking every image and table.

    Writes train.npy and test.npy (uint8, n × 96 × 96 × 3), patches.parquet (one row per patch) and
    report.json (counts, flags, quarantined images, channel statistics, digests).
    """
    from src.data.patches import ingest_archive
    from src.data.sources import download_archive, kaggle_client

    params = load_params()
    configure(params.runtime.verbosity)
    log = get_logger("ingest")
    if not download:
        ingest_archive(params.ingest, paths.INGEST, workers=params.runtime.workers, log=log)
        return
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
