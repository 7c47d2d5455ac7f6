"""Small tables as the stages leave them, valid by the schemas, for tests of whoever reads them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from src.data.measurements import COVARIANCE_COLUMNS, MEAN_COLUMNS
from src.system.durable import write_manifest


def patches_frame(
    labels: Sequence[int],
    *,
    n_test: int = 0,
    slides: Sequence[str | None] | None = None,
    sha256: Sequence[str] | None = None,
    flags: Sequence[str] | None = None,
    phash: Sequence[int | None] | None = None,
    density: np.ndarray | None = None,
) -> pd.DataFrame:
    """``patches.parquet`` of len(labels) train patches, ids 0, 1, …, and ``n_test`` test patches.

    ``slides`` are of train alone; the other columns are of all patches, train first. By default
    slides are unknown, no two patches alike, hashes null. ``density`` is (n, 9).
    """
    n_train = len(labels)
    n = n_train + n_test
    values = np.full((n, 9), 0.25, np.float32) if density is None else density.astype(np.float32)
    return pd.DataFrame(
        {
            "id": pd.array([f"{i:040x}" for i in range(n)], dtype="str"),
            "subset": pd.array(["train"] * n_train + ["test"] * n_test, dtype="str"),
            "row": np.array([*range(n_train), *range(n_test)], dtype=np.int64),
            "label": pd.array([*map(int, labels), *[None] * n_test], dtype="Int8"),
            "slide": pd.array([*(slides or [None] * n_train), *[None] * n_test], dtype="str"),
            "sha256": pd.array(sha256 or [f"{i:064x}" for i in range(n)], dtype="str"),
            "flags": pd.array(flags or [""] * n, dtype="str"),
            "submission_order": pd.array([*[None] * n_train, *range(n_test)], dtype="Int64"),
            "phash": pd.array(phash or [None] * n, dtype="UInt64"),
        }
        | dict(zip(MEAN_COLUMNS + COVARIANCE_COLUMNS, values.T, strict=True))
    )


def write_store(
    folder: Path,
    patches: pd.DataFrame,
    *,
    train: np.ndarray | None = None,
    test: np.ndarray | None = None,
) -> Path:
    """``data/ingest`` as the stage leaves it, but for report.json; blank pixels by default."""
    folder.mkdir(parents=True, exist_ok=True)
    patches.to_parquet(folder / "patches.parquet", index=False)
    for subset, pixels in (("train", train), ("test", test)):
        n = int(((patches["subset"] == subset) & (patches["row"] >= 0)).sum())
        blank = np.zeros((n, 96, 96, 3), np.uint8)
        np.save(folder / f"{subset}.npy", blank if pixels is None else pixels)
    write_manifest(folder)
    return folder


def write_split_folder(
    folder: Path, ids: Sequence[str], splits: Sequence[str], groups: Sequence[str] | None = None
) -> Path:
    """``data/split`` but for split.json; every patch is its own group by default."""
    folder.mkdir(parents=True, exist_ok=True)
    frame = pd.DataFrame(
        {
            "id": pd.array(ids, dtype="str"),
            "split": pd.array(splits, dtype="str"),
            "group": pd.array(groups or [f"patch:{i}" for i in ids], dtype="str"),
        }
    )
    frame.to_parquet(folder / "split.parquet", index=False)
    write_manifest(folder)
    return folder
