"""Stage ``ingest``: the archive's images to packed pixels and one table of patches."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from src import paths
from src.params import load_params
from src.system.cli import run
from src.system.log import configure, get_logger

if TYPE_CHECKING:
    from src.data.archives import Archive
    from src.data.inventory import Inventory
    from src.data.packing import PackedSubset


def main() -> None:
    """Read the archive of ingest.archive into data/ingest, checking every image and table.

    Writes train.npy and test.npy (uint8, n × 96 × 96 × 3), patches.parquet (one row a patch) and
    report.json (counts, flags, quarantined images, channel statistics, digests).
    """
    params = load_params()
    configure(params.runtime.verbosity)
    ingest_archive(
        paths.ROOT / params.ingest.archive,
        paths.INGEST,
        max_bad=params.ingest.max_bad,
        workers=params.runtime.workers,
        log=get_logger("ingest"),
    )


def ingest_archive(
    path: Path, folder: Path, *, max_bad: int, workers: int, log: logging.Logger
) -> dict[str, Any]:
    """Read the archive at ``path`` into ``folder``; return the report.

    ``folder`` is replaced as a whole when everything is there; until then it is as it was.

    Raises
    ------
    ProjectError
        The archive breaks a rule, or more than ``max_bad`` images are unreadable.
    """
    from src.data.archives import open_archive
    from src.data.inventory import take_inventory
    from src.system.durable import replacing_folder

    archive = open_archive(path)
    inventory = take_inventory(archive)
    log.info(
        f"{path.name}: {len(inventory.train_ids):,} train and "
        f"{len(inventory.test_ids):,} test images"
    )
    with replacing_folder(folder) as unfinished:
        packed = _decode(archive, inventory, unfinished, max_bad=max_bad, workers=workers, log=log)
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
    source: dict[str, str | int],
    inventory: "Inventory",
    packed: "dict[str, PackedSubset]",
    folder: Path,
) -> dict[str, Any]:
    from src.data.ingest_report import ingest_report
    from src.data.labels import check_both_classes
    from src.data.packed import TABLE_FILE
    from src.data.patch_table import patch_table
    from src.system.durable import write_json

    table = patch_table(inventory, packed)
    check_both_classes(table["label"].dropna().tolist())
    report = ingest_report(source, inventory, packed, table)
    table.to_parquet(folder / TABLE_FILE, index=False)
    write_json(folder / paths.INGEST_REPORT.name, report)
    return report


def _log_report(report: dict[str, Any], log: logging.Logger) -> None:
    patches, labels, slides = report["patches"], report["labels"], report["slides"]
    tumour = 100 * labels["tumour"] / patches["train"]
    known = f"{slides['n_slides']:,} slides" if slides["n_slides"] else "slides unknown"
    log.info(f"train {patches['train']:,} patches, {tumour:.1f} % tumour, {known}")
    log.info(f"test {patches['test']:,} patches")
    if slides["n_slides"] and slides["patches_unknown"]:
        log.warning(f"{slides['patches_unknown']:,} train patches without a slide")
    if slides["rows_unused"]:
        log.warning(f"{slides['rows_unused']:,} rows of slides.csv name no patch of the archive")
    for flag, found in report["flags"].items():
        log.info(f"flagged {flag}: {found['n']:,} patches")
    if report["quarantined"]:
        log.warning(
            f"quarantined {len(report['quarantined']):,} unreadable images: see report.json"
        )


if __name__ == "__main__":
    run(main)
