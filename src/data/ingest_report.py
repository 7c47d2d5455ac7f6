"""``report.json``: what an ingest found, in numbers, and digests that name the data set."""

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from src.data.flags import DUPLICATE_OF
from src.data.inventory import Inventory
from src.data.measuring import channel_moments
from src.data.packing import PackedSubset
from src.data.terms import CLASSES

_MAX_IDS_LISTED = 1_000


def ingest_report(
    source: Mapping[str, Any],
    inventory: Inventory,
    packed: Mapping[str, PackedSubset],
    table: pd.DataFrame,
) -> dict[str, Any]:
    """Everything countable about an ingest, ready for JSON.

    ``source`` is the archive's summary. In the report, ``channels`` are mean and standard
    deviation of red, green and blue over all train pixels, scaled to 0 … 1; ``flags`` lists at
    most 1,000 ids each beside the full count.
    """
    train = table[table["subset"] == "train"]
    n_test = len(table) - len(train)
    labels = train["label"].to_numpy(dtype=np.int64)
    return {
        "archive": dict(source),
        "patches": {"train": len(train), "test": n_test},
        "no_submission": not inventory.submission_order,
        "labels": {name: int((labels == label).sum()) for label, name in enumerate(CLASSES)},
        "slides": _slides(train, inventory),
        "flags": _flags(table),
        "quarantined": [
            {"id": patch_id, "subset": name, "reason": reason}
            for name, subset in packed.items()
            for patch_id, reason in sorted(subset.bad.items())
        ],
        "channels": _channels(packed["train"], n_patches=len(train)),
        "digests": {
            name: content_digest(rows) for name, rows in table.groupby("subset", sort=False)
        },
    }


def _slides(train: pd.DataFrame, inventory: Inventory) -> dict[str, int | str | None]:
    known = int(train["slide"].notna().sum())
    return {
        "table": inventory.slides_from,
        "n_slides": int(train["slide"].nunique()),
        "patches_known": known,
        "patches_unknown": len(train) - known,
        "rows_unused": inventory.n_slides_unused,
    }


def _flags(table: pd.DataFrame) -> dict[str, dict[str, Any]]:
    flagged = table.loc[table["flags"] != "", ["id", "flags"]]
    single = flagged.assign(flag=flagged["flags"].str.split(",")).explode("flag")
    kinds = single["flag"].str.replace(f"{DUPLICATE_OF}.*", "duplicate", regex=True)
    return {
        str(kind): {"n": len(ids), "ids": ids.head(_MAX_IDS_LISTED).tolist()}
        for kind, ids in single["id"].groupby(kinds)
    }


def _channels(train: PackedSubset, *, n_patches: int) -> dict[str, list[float]]:
    mean, std = channel_moments(train.sums, train.squares, n_patches=n_patches)
    return {
        "mean": [round(float(level) / 255, 6) for level in mean],
        "std": [round(float(level) / 255, 6) for level in std],
    }


def content_digest(rows: pd.DataFrame) -> str:
    """MD5 of id, pixel hash and label of every patch: 32 hex digits, as MLflow allows 36."""
    digest = hashlib.md5(usedforsecurity=False)
    columns = zip(rows["id"], rows["sha256"].fillna(""), rows["label"].astype("str"), strict=True)
    for patch_id, sha256, label in columns:
        digest.update(f"{patch_id},{sha256},{label}\n".encode())
    return digest.hexdigest()
