"""What ``evaluate`` leaves behind, as small tables; ``tests.fixtures`` makes a project of them."""

import numpy as np
import pandas as pd

from src import paths
from src.data.dataset import LabelledPatches
from src.system.durable import replacing_folder, write_json


def holdout(n: int = 40) -> pd.DataFrame:
    """Groups of four; the model ranks perfectly, the baseline at random."""
    rng = np.random.default_rng(3)
    labels = np.arange(n) % 2
    return pd.DataFrame(
        {
            "id": [f"{i:040x}" for i in range(n)],
            "sha256": [f"{i:064x}" for i in range(n)],
            "slide": None,
            "group": [f"g{i // 4}" for i in range(n)],
            "label": labels.astype(np.int8),
            "probability": 0.25 + 0.5 * labels + rng.uniform(0, 0.2, n),
            "baseline_probability": rng.uniform(0, 1, n),
        }
    )


def labelled_patches(ids, rows, pixels=None) -> LabelledPatches:
    n = len(ids)
    return LabelledPatches(
        split="holdout",
        ids=np.array(ids),
        rows=np.array(rows, np.int64),
        labels=np.arange(n, dtype=np.uint8) % 2,
        groups=np.array([f"g{i // 4}" for i in range(n)]),
        pixels=np.zeros((0, 96, 96, 3), np.uint8) if pixels is None else pixels,
    )


def write_evaluation(rows: pd.DataFrame) -> None:
    with replacing_folder(paths.EVALUATE) as folder:
        rows.to_parquet(folder / paths.PREDICTIONS.name)
    write_json(paths.METRICS, {"holdout": {"auroc": 1.0}, "baseline": {"auroc": 0.6}})
