"""Stage ``ingest``: the archive's images to packed pixels and one table of patches."""

import logging
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from src import paths
from src.params import IngestParams, load_params
from src.system.cli import run
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
    if download:
        # not imported: ingest need not run again when a word of it changes
        raise typer.Exit(subprocess.call([sys.executable, "-m", "src.fetch"], cwd=paths.ROOT))
    params = load_params()
    configure(params.runtime.verbosity)
    ingest_archive(
        params.ingest, paths.INGEST, workers=params.runtime.workers, log=get_logger("ingest")
    )


def ingest_archive(
    params: IngestParams, folder: Path, *, workers: int, log: logging.Logger
) -> dict[str, Any]:
    """Read the archive of ``params`` into ``folder``; return the report.

    ``folder`` is replaced as a whole when everything is there; until then it is as it was.

    Raises
    ------
    ProjectError
        The archive breaks a rule, or more than ``max_bad`` images are unreadable.
    """
    from src.data.inventory import take_inventory
    from src.data.sources import open_archives
    from src.system.durable import replacing_folder

    slides = paths.ROOT / params.slides if params.slides else None
    with replacing_folder(folder) as unfinished:
        with closing(
            open_archives(
                paths.ROOT / params.archive,
                [paths.ROOT / archive for archive in params.extra],
                no_submission=params.no_submission,
                h5_sha256=params.h5_sha256,
            )
        ) as archive:
            inventory = take_inventory(archive, with_test=not params.no_submission, slides=slides)
            log.info(
                f"{archive.path.name}: {len(inventory.train_ids):,} train and "
                f"{len(inventory.test_ids):,} test images"
            )
            packed = _decode(
                archive, inventory, unfinished, max_bad=params.max_bad, workers=workers, log=log
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
