"""``patches.parquet``, one row per patch, and the packed pixels it describes: ``data/ingest``.

================  =======  ===================================================================
column            type     meaning
================  =======  ===================================================================
id                str      40 lower-case hex digits
subset            str      train (labelled) or test (Kaggle's unlabelled)
row               int64    place in that subset's ``.npy``; −1 for quarantined test patches
label             Int8     0 normal, 1 tumour; null in test
slide             str      null where unknown
sha256            str      of the 27,648 pixel bytes; null for quarantined test patches
flags             str      comma-separated, '' for none: ``blank_white``, ``blank_black``,
                           ``duplicate_of:<id>`` (same pixels), ``quarantined`` (unreadable)
submission_order  Int64    position in ``sample_submission.csv``, from 0; null in train
phash             UInt64   perceptual hash; null for patches that are blank, without structure or
                           quarantined
od_mean_r … _b    float32  mean optical density of each channel; null if quarantined
od_cov_rr … _bb   float32  their covariance over the patch (``src.data.measurements``)
================  =======  ===================================================================

Train before test, each by id. Quarantined train patches are not in the table. Tables are checked
against their schema on write and on read, files against their manifest on read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from logging import INFO, WARNING, Logger
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pyarrow import ArrowException

from src import patch, paths
from src.data.inventory import Inventory, check_both_classes, take_inventory
from src.data.measurements import (
    COVARIANCE_COLUMNS,
    MEAN_COLUMNS,
    MOMENT_COLUMNS,
    channel_moments,
)
from src.data.packing import PackedSubset, pack_archive
from src.data.sources import open_archive
from src.params import IngestParams
from src.system.durable import replacing_folder, verify_file, write_json
from src.system.errors import ProjectError
from src.system.progress import progress

TABLE_FILE = "patches.parquet"
SUBSETS = ("train", "test")
DUPLICATE_OF = "duplicate_of:"
QUARANTINED = "quarantined"

_MAX_IDS_LISTED = 1_000
_AGAIN = "run: dvc repro --force ingest"


class PackedStoreError(ProjectError):
    """The packed store is missing or isn't what ``ingest`` writes."""


class SchemaError(ProjectError):
    """A table isn't what its schema says."""


def ingest_archive(
    params: IngestParams, folder: Path, *, workers: int, log: Logger
) -> dict[str, Any]:
    """Read the archive of ``params`` into ``folder``; return the report.

    ``folder`` is replaced as a whole when everything is there; until then it is as it was.

    Raises
    ------
    ProjectError
        The archive breaks a rule, or more than ``max_bad`` images are unreadable.
    """
    slides = paths.ROOT / params.slides if params.slides else None
    with replacing_folder(folder) as unfinished:
        with closing(
            open_archive(paths.ROOT / params.archive, h5_sha256=params.h5_sha256)
        ) as archive:
            inventory = take_inventory(archive, with_test=not params.no_submission, slides=slides)
            ids_of = {"train": inventory.train_ids, "test": inventory.test_ids}
            n_train, n_test = len(inventory.train_ids), len(inventory.test_ids)
            log.info(f"{archive.path.name}: {n_train:,} train and {n_test:,} test images")
            with progress("decoding", n_train + n_test, "patches", log) as advance:
                packed = pack_archive(
                    archive,
                    ids_of,
                    unfinished,
                    max_bad=params.max_bad,
                    workers=workers,
                    advance=advance,
                )
            source = archive.summary()
        del archive  # its list of members takes 160 MB at full size
        table = patch_table(inventory, packed)
        check_both_classes(table["label"].dropna().tolist())  # quarantine may have taken one
        report = ingest_report(source, inventory, packed, table)
        write_patches(table, unfinished)
        write_json(unfinished / paths.INGEST_REPORT.name, report)
    for level, line in _findings(report):
        log.log(level, line)
    return report


def ingest_report(
    source: Mapping[str, Any],
    inventory: Inventory,
    packed: Mapping[str, PackedSubset],
    table: pd.DataFrame,
) -> dict[str, Any]:
    """``report.json``: everything countable about an ingest, and digests that name the data.

    ``source`` is the archive's summary. In the report, ``channels`` are mean and standard
    deviation of red, green and blue over all train pixels, scaled to 0 … 1; ``flags`` lists at
    most 1,000 ids each next to the full count.
    """
    train = table[table["subset"] == "train"]
    labels = train["label"].to_numpy(dtype=np.int64)
    n_known = int(train["slide"].notna().sum())
    measured = packed["train"].measured
    mean, std = channel_moments(measured.sums, measured.squares, n_patches=len(train))
    # one row per flag of a patch; duplicates are of one kind, whatever they repeat
    flagged = table.assign(flag=table["flags"].str.split(",")).explode("flag")
    flagged = flagged[flagged["flag"] != ""]
    kinds = flagged["flag"].str.replace(f"{DUPLICATE_OF}.*", "duplicate", regex=True)
    return {
        "archive": dict(source),
        "patches": {"train": len(train), "test": len(table) - len(train)},
        "no_submission": not inventory.submission_order,
        "labels": {name: int((labels == label).sum()) for label, name in enumerate(patch.CLASSES)},
        "slides": {
            "table": inventory.slides_from,
            "n_slides": int(train["slide"].nunique()),
            "patches_known": n_known,
            "patches_unknown": len(train) - n_known,
            "rows_unused": inventory.n_slides_unused,
        },
        "flags": {
            str(kind): {"n": len(ids), "ids": ids.head(_MAX_IDS_LISTED).tolist()}
            for kind, ids in flagged["id"].groupby(kinds)
        },
        "quarantined": [
            {"id": patch_id, "subset": name, "reason": reason}
            for name, subset in packed.items()
            for patch_id, reason in sorted(subset.bad.items())
        ],
        "channels": {
            "mean": [round(float(level) / 255, 6) for level in mean],
            "std": [round(float(level) / 255, 6) for level in std],
        },
        "digests": {
            name: content_digest(rows) for name, rows in table.groupby("subset", sort=False)
        },
    }


def _findings(report: Mapping[str, Any]) -> Iterator[tuple[int, str]]:
    """Lines of log with their levels."""
    patches, labels, slides = report["patches"], report["labels"], report["slides"]
    tumour = 100 * labels["tumour"] / patches["train"]
    known = f"{slides['n_slides']:,} slides" if slides["n_slides"] else "slides unknown"
    yield INFO, f"train {patches['train']:,} patches, {tumour:.1f} % tumour, {known}"
    yield INFO, f"test {patches['test']:,} patches"
    if slides["table"]:
        n_known = f"{slides['patches_known']:,} train patches known"
        yield INFO, f"slides from {slides['table']}: {n_known}"
    if slides["n_slides"] and slides["patches_unknown"]:
        yield WARNING, f"{slides['patches_unknown']:,} train patches without a slide"
    if slides["rows_unused"]:
        unused = f"{slides['rows_unused']:,} rows of {slides['table']}"
        yield WARNING, f"{unused} name no patch of the archive"
    for flag, found in report["flags"].items():
        yield INFO, f"flagged {flag}: {found['n']:,} patches"
    if report["quarantined"]:
        n_bad = f"{len(report['quarantined']):,} unreadable images"
        yield WARNING, f"quarantined {n_bad}: see report.json"


def open_pixels(subset: str, folder: Path = paths.INGEST) -> NDArray[np.uint8]:
    """The (n, 96, 96, 3) uint8 pixels of ``train`` or ``test``, memory-mapped, read-only.

    The file is hashed against its manifest first, so that a single flipped bit is refused: about
    a second per GB, once per process.

    Raises
    ------
    PackedStoreError
        The file is missing or holds something else.
    IntegrityError
        It isn't the file that ``ingest`` wrote.
    """
    path = folder / f"{subset}.npy"
    if not path.is_file():
        raise PackedStoreError(f"packed pixels not found: {path}; run: dvc repro ingest")
    verify_file(path)
    try:
        pixels: NDArray[np.uint8] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError) as error:
        raise PackedStoreError(f"not packed pixels: {path} ({error}); {_AGAIN}") from error
    if pixels.dtype != np.uint8 or pixels.shape[1:] != patch.SHAPE:
        raise PackedStoreError(
            f"not packed pixels: {path} is {pixels.dtype} {pixels.shape}, expected uint8 "
            f"(n, 96, 96, 3); {_AGAIN}"
        )
    return pixels


def read_patches(folder: Path = paths.INGEST) -> pd.DataFrame:
    """The table of patches, verified and checked.

    Raises
    ------
    PackedStoreError
        The table is missing or torn.
    IntegrityError
        It isn't the file that ``ingest`` wrote.
    SchemaError
        A column is missing, or holds what it may not.
    """
    path = folder / TABLE_FILE
    if not path.is_file():
        raise PackedStoreError(f"table of patches not found: {path}; run: dvc repro ingest")
    verify_file(path)
    try:
        frame = pd.read_parquet(path)
    except (ArrowException, OSError, ValueError) as error:
        raise PackedStoreError(f"not a table of patches: {path} ({error}); {_AGAIN}") from error
    return check_patches(frame, path.name, _AGAIN)


def write_patches(frame: pd.DataFrame, folder: Path) -> None:
    """Check the table of patches and write it into ``folder``; the folder's manifest comes later.

    Raises
    ------
    SchemaError
        A column is missing, or holds what it may not.
    """
    checked = check_patches(frame, TABLE_FILE, "please report this")
    checked.to_parquet(folder / TABLE_FILE, index=False)


def patch_table(inventory: Inventory, packed: Mapping[str, PackedSubset]) -> pd.DataFrame:
    """The table of the patches in ``packed`` (train, test)."""
    parts = {subset: _subset_table(subset, packed[subset]) for subset in SUBSETS}
    parts["train"] = parts["train"][parts["train"]["row"] >= 0]
    table = pd.concat(list(parts.values()), ignore_index=True)
    ids = table["id"]
    duplicates = duplicate_flags(ids.tolist(), table["sha256"].tolist())
    flags = [
        ",".join(flag for flag in pair if flag)
        for pair in zip(table["flag"], duplicates, strict=True)
    ]
    return pd.DataFrame(
        {
            "id": ids.astype("str"),
            "subset": table["subset"].astype("str"),
            "row": table["row"].astype(np.int64),
            # labels are of train ids and the order is of test ids alone: the others become null
            "label": ids.map(inventory.labels).astype("Int8"),
            "slide": ids.map(inventory.slides or {}).astype("str"),
            "sha256": table["sha256"].where(table["sha256"] != "").astype("str"),
            "flags": pd.Series(flags, dtype="str"),
            "submission_order": ids.map(inventory.submission_order).astype("Int64"),
            "phash": table["phash"].astype("UInt64"),
            **{column: table[column].astype(np.float32) for column in MOMENT_COLUMNS},
        }
    )


def _subset_table(subset: str, packed: PackedSubset) -> pd.DataFrame:
    measured = packed.measured
    flags = np.where(packed.rows < 0, QUARANTINED, np.asarray(measured.blanks, dtype=object))
    return pd.DataFrame(
        {
            "id": packed.ids,
            "subset": subset,
            "row": packed.rows,
            "sha256": packed.digests,
            "flag": flags,
            "phash": pd.arrays.IntegerArray(measured.hashes, ~measured.hash_known),
        }
        | dict(zip(MOMENT_COLUMNS, measured.moments.T, strict=True))
    )


def duplicate_flags(ids: Sequence[str], digests: Sequence[str]) -> list[str]:
    """``duplicate_of:<first id>`` where an earlier patch has the same digest, else ''.

    ``digests`` that are '' (unread patches) are nobody's duplicate.
    """
    first: dict[str, str] = {}
    flags = []
    for patch_id, digest in zip(ids, digests, strict=True):
        original = first.setdefault(digest, patch_id) if digest else patch_id
        flags.append("" if original == patch_id else f"{DUPLICATE_OF}{original}")
    return flags


def has_flag(flags: pd.Series, flag: str) -> NDArray[np.bool_]:
    """Where one of the comma-joined ``flags`` begins with ``flag``: (n,) bool."""
    return flags.map(lambda joined: any(f.startswith(flag) for f in joined.split(","))).to_numpy(
        dtype=bool
    )


def content_digest(rows: pd.DataFrame) -> str:
    """MD5 of id, pixel hash and label of every patch: 32 hex digits, as MLflow allows 36."""
    digest = hashlib.md5(usedforsecurity=False)
    columns = zip(rows["id"], rows["sha256"].fillna(""), rows["label"].astype("str"), strict=True)
    for patch_id, sha256, label in columns:
        digest.update(f"{patch_id},{sha256},{label}\n".encode())
    return digest.hexdigest()


class _Column(NamedTuple):
    """What one column may hold: ``holds`` of its non-null values (k,) is (k,) bool."""

    dtype: str
    rule: str = ""
    holds: Callable[[pd.Series], pd.Series] | None = None
    nullable: bool = False


def _matching(pattern: str) -> Callable[[pd.Series], pd.Series]:
    return lambda values: values.str.fullmatch(pattern)


_ID = _Column("str", "must be 40 lower-case hex digits", _matching(patch.ID))
_MAX_DENSITY = 2.5  # of black: log10(256)
_MEAN = _Column("float32", "must be 0 to 2.5", lambda v: v.between(0, _MAX_DENSITY), nullable=True)
_COVARIANCE = _Column(
    "float32", "must be -6.25 to 6.25", lambda v: v.abs() <= _MAX_DENSITY**2, nullable=True
)
_PATCHES = {
    "id": _ID,
    "subset": _Column("str", "must be one of train, test", lambda v: v.isin(SUBSETS)),
    "row": _Column("int64", "must be ≥ -1", lambda v: v >= -1),
    "label": _Column("Int8", "must be 0 or 1", lambda v: v.isin((0, 1)), nullable=True),
    "slide": _Column("str", nullable=True),
    "sha256": _Column("str", "must be 64 hex digits", _matching(r"[0-9a-f]{64}"), nullable=True),
    "flags": _Column("str"),
    "submission_order": _Column("Int64", "must be ≥ 0", lambda v: v >= 0, nullable=True),
    "phash": _Column("UInt64", nullable=True),
    **dict.fromkeys(MEAN_COLUMNS, _MEAN),
    **dict.fromkeys(COVARIANCE_COLUMNS, _COVARIANCE),
}
_SPLIT = {
    "id": _ID,
    "split": _Column("str", "must be one of train, val, holdout", lambda v: v.isin(patch.SPLITS)),
    "group": _Column("str"),
}


def check_patches(frame: pd.DataFrame, name: str, remedy: str) -> pd.DataFrame:
    """The table of patches, if it is one; ``name`` and ``remedy`` are for the error.

    Raises
    ------
    SchemaError
        Column, rule and what came, in one line.
    """
    _check_columns(frame, _PATCHES, name, remedy)
    in_train, packed = frame["subset"] == "train", frame["row"] >= 0
    rows = frame[packed].groupby("subset")["row"]
    rules = {
        "label must be there in train, and only there": frame["label"].notna() == in_train,
        "submission_order must be there in test, and only there": (
            frame["submission_order"].notna() == ~in_train
        ),
        "sha256 must be there for every packed patch, and only there": (
            frame["sha256"].notna() == packed
        ),
        "row must count 0, 1, 2 … within each subset": (
            (rows.nunique() == rows.size()) & (rows.max() == rows.size() - 1)
        ),
    }
    for rule, holds in rules.items():
        if not holds.all():
            raise SchemaError(f"{name}: {rule}; {remedy}")
    return frame


def check_split(frame: pd.DataFrame, name: str, remedy: str) -> pd.DataFrame:
    """The table of splits, if it is one; errors as of :func:`check_patches`."""
    _check_columns(frame, _SPLIT, name, remedy)
    if frame[["group", "split"]].drop_duplicates()["group"].duplicated().any():
        raise SchemaError(f"{name}: group must lie in one split as a whole; {remedy}")
    return frame


def _check_columns(
    frame: pd.DataFrame, columns: Mapping[str, _Column], name: str, remedy: str
) -> None:
    for odd in columns.keys() ^ set(frame.columns):
        kind = "missing" if odd in columns else "unknown"
        raise SchemaError(f"{name}: {kind} column {odd}; {remedy}")
    for title, column in columns.items():
        values = frame[title]
        known = values.dropna()
        if str(values.dtype) != column.dtype:
            problem = f"must be of type {column.dtype} (got {values.dtype})"
        elif len(known) < len(values) and not column.nullable:
            problem = "must not be null"
        elif column.holds and not (holds := column.holds(known)).all():
            problem = f"{column.rule} (got {str(known[~holds].iloc[0])!r})"
        elif title == "id" and values.duplicated().any():
            problem = f"must not repeat (got {values[values.duplicated()].iloc[0]!r})"
        else:
            continue
        raise SchemaError(f"{name}: column {title} {problem}; {remedy}")
