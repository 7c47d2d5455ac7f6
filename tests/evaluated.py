"""What ``evaluate`` leaves behind, as small tables; ``tests.fixtures`` makes a project of them."""

import numpy as np
import pandas as pd

from src import paths
from src.data.labelled import LabelledPatches
from src.params import load_params
from src.system.durable import replacing_folder, write_json


def holdout(n: int = 40) -> pd.DataFrame:
    """Groups of two; the model ranks perfectly, the baseline at random."""
    rng = np.random.default_rng(3)
    labels = np.arange(n) % 2
    return pd.DataFrame(
        {
            "id": [f"{i:040x}" for i in range(n)],
            "sha256": [f"{i:064x}" for i in range(n)],
            "group": [f"g{i // 4}" for i in range(n)],
            "label": labels.astype(np.int8),
            "probability": 0.25 + 0.5 * labels + rng.uniform(0, 0.2, n),
            "baseline_probability": rng.uniform(0, 1, n),
        }
    )


def evaluate_params():
    return load_params().evaluate.model_copy(update={"n_resamples": 200})


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


def write_evaluation(rows: pd.DataFrame, *, low: float) -> None:
    """``low`` bounds the AUROC difference to the baseline from below."""
    with replacing_folder(paths.EVALUATE) as folder:
        rows.to_parquet(folder / paths.PREDICTIONS.name)
    difference = {"auroc": 0.4, "auroc_low": low, "auroc_high": 0.6}
    metrics = {"holdout": {"auroc": 1.0}, "baseline": {"auroc": 0.6}}
    write_json(paths.METRICS, {**metrics, "difference_to_baseline": difference})
