"""``patches.parquet``: one row a patch, train before test, each by id.

================  =======  ===================================================================
column            type     meaning
================  =======  ===================================================================
id                str      40 lower-case hex digits
subset            str      train (labelled) or test (Kaggle's unlabelled)
row               int64    place in that subset's ``.npy``; −1 for quarantined test patches
label             Int8     0 normal, 1 tumour; null in test
slide             str      null where unknown
sha256            str      of the 27,648 pixel bytes; null for quarantined test patches
flags             str      comma-separated, '' for none (``src.data.flags``)
submission_order  Int64    position in ``sample_submission.csv``, from 0; null in train
phash             UInt64   perceptual hash; null for patches that are blank, without structure or
                           quarantined (``src.data.perceptual_hash``)
od_mean_r … _b    float32  mean optical density of each channel; null if quarantined
od_cov_rr … _bb   float32  their covariance over the patch (``src.data.optical_density``)
================  =======  ===================================================================

Quarantined train patches are not in the table.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from src.data.flags import QUARANTINED, duplicate_flags, join_flags
from src.data.inventory import Inventory
from src.data.optical_density import MOMENT_COLUMNS
from src.data.packing import PackedSubset


def patch_table(inventory: Inventory, packed: Mapping[str, PackedSubset]) -> pd.DataFrame:
    """The table of the patches in ``packed`` (train, test)."""
    train = _subset_table("train", packed["train"])
    table = pd.concat(
        [train[train["row"] >= 0], _subset_table("test", packed["test"])], ignore_index=True
    )
    ids = table["id"]
    slides = inventory.slides or {}
    # labels are of train ids and the order is of test ids alone: the others become null
    duplicates = duplicate_flags(ids.tolist(), table["sha256"].tolist())
    return pd.DataFrame(
        {
            "id": ids.astype("str"),
            "subset": table["subset"].astype("str"),
            "row": table["row"].astype(np.int64),
            "label": ids.map(inventory.labels).astype("Int8"),
            "slide": ids.map(slides).astype("str"),
            "sha256": table["sha256"].where(table["sha256"] != "").astype("str"),
            "flags": pd.Series(
                [join_flags(pair) for pair in zip(table["flag"], duplicates, strict=True)],
                dtype="str",
            ),
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
