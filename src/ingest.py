"""Stage ``ingest``: the archive's images to packed pixels and one table of patches."""

import logging
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from src import paths
from src.params import load_params
from src.system.cli import run
from src.system.errors import ProjectError
from src.system.log import configure, get_logger

if TYPE_CHECKING:
    from src.data.archives import Archive
    from src.data.inventory import Inventory
    from src.data.packing import PackedSubset


def main(
    download: Annotated[
        bool, typer.Option("--download", help="Fetch Kaggle's archive, `dvc add` it, and stop.")
    ] = False,
) -> None:
    """Read the archive of ingest.archive into data/ingest, checking every image and table.

    Writes train.npy and test.npy (uint8, n × 96 × 96 × 3), patches.parquet (one row a patch) and
    report.json (counts, flags, quarantined images, channel statistics, digests).
    """
    params = load_params()
    configure(params.runtime.verbosity)
    log = get_logger("ingest")
    if download:
        fetch_archive(log)
        return
    ingest_archive(
        paths.ROOT / params.ingest.archive,
        paths.INGEST,
        max_bad=params.ingest.max_bad,
        workers=params.runtime.workers,
        log=log,
        extra=[paths.ROOT / archive for archive in params.ingest.extra],
        no_submission=params.ingest.no_submission,
        slides=paths.ROOT / params.ingest.slides if params.ingest.slides else None,
        h5_sha256=params.ingest.h5_sha256,
    )


def fetch_archive(log: logging.Logger) -> None:
    """Download Kaggle's archive into data/source and track it with DVC.

    Raises
    ------
    DownloadError
        No client, no credentials, no network, or the competition's rules are not accepted.
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


def ingest_archive(
    path: Path,
    folder: Path,
    *,
    max_bad: int,
    workers: int,
    log: logging.Logger,
    extra: Sequence[Path] = (),
    no_submission: bool = False,
    slides: Path | None = None,
    h5_sha256: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Read the archive at ``path`` into ``folder``; return the report.

    ``folder`` is replaced as a whole when everything is there; until then it is as it was. The
    other parameters are those of the section ``ingest`` of params.yaml.

    Raises
    ------
    ProjectError
        The archive breaks a rule, or more than ``max_bad`` images are unreadable.
    """
    from src.data.inventory import take_inventory
    from src.data.sources import open_archives
    from src.system.durable import replacing_folder

    with replacing_folder(folder) as unfinished:
        with closing(
            open_archives(path, extra, no_submission=no_submission, h5_sha256=h5_sha256)
        ) as archive:
            inventory = take_inventory(archive, with_test=not no_submission, slides=slides)
            log.info(
                f"{path.name}: {len(inventory.train_ids):,} train and "
                f"{len(inventory.test_ids):,} test images"
            )
            packed = _decode(
                archive, inventory, unfinished, max_bad=max_bad, workers=workers, log=log
            )
            source = archive.summary()
        del archive  # its list of members takes 160 MB at full size
        report = _describe(source, inventory, packed, unfinished)
    _log_report(report, log)
    return report


def _decode(
    archive: "Archive",
    inventory: "Inventory",
    folder: Path,
    *,
    max_bad: int,
    workers: int,
    log: logging.Logger,
) -> "dict[str, PackedSubset]":
    from src.data.packing import pack_archive
    from src.system.progress import progress

    ids_of = {"train": inventory.train_ids, "test": inventory.test_ids}
    n_patches = len(inventory.train_ids) + len(inventory.test_ids)
    with progress("decoding", n_patches, "patches", log) as advance:
        return pack_archive(
            archive, ids_of, folder, max_bad=max_bad, workers=workers, advance=advance
        )


def _describe(
    source: dict[str, Any],
    inventory: "Inventory",
    packed: "dict[str, PackedSubset]",
    folder: Path,
) -> dict[str, Any]:
    from src.data.ingest_report import ingest_report
    from src.data.labels import check_both_classes
    from src.data.packed import write_patches
    from src.data.patch_table import patch_table
    from src.system.durable import write_json

    table = patch_table(inventory, packed)
    check_both_classes(table["label"].dropna().tolist())
    report = ingest_report(source, inventory, packed, table)
    write_patches(table, folder)
    write_json(folder / paths.INGEST_REPORT.name, report)
    return report


def _log_report(report: dict[str, Any], log: logging.Logger) -> None:
    patches, labels, slides = report["patches"], report["labels"], report["slides"]
    tumour = 100 * labels["tumour"] / patches["train"]
    known = f"{slides['n_slides']:,} slides" if slides["n_slides"] else "slides unknown"
    log.info(f"train {patches['train']:,} patches, {tumour:.1f} % tumour, {known}")
    log.info(f"test {patches['test']:,} patches")
    if slides["table"]:
        log.info(f"slides from {slides['table']}: {slides['patches_known']:,} train patches known")
    if slides["n_slides"] and slides["patches_unknown"]:
        log.warning(f"{slides['patches_unknown']:,} train patches without a slide")
    if slides["rows_unused"]:
        log.warning(
            f"{slides['rows_unused']:,} rows of {slides['table']} name no patch of the archive"
        )
    for flag, found in report["flags"].items():
        log.info(f"flagged {flag}: {found['n']:,} patches")
    if report["quarantined"]:
        log.warning(
            f"quarantined {len(report['quarantined']):,} unreadable images: see report.json"
        )


if __name__ == "__main__":
    run(main)
