"""The clustered bootstrap beside the plain loop it replaces: seconds for 2,000 resamples.

``python -m benchmarks.bootstrap``: 33,000 patches (Kaggle's holdout), one core. The loop puts the
drawn patches together and calls scikit-learn; it is timed on 20 resamples and scaled.
"""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import resource
import time
from collections.abc import Callable

import numpy as np
from sklearn.metrics import average_precision_score, roc_auc_score

from src.evaluation.intervals import resample
from src.evaluation.metrics import METRICS, scored

N_PATCHES = 33_000
N_RESAMPLES = 2_000
N_LOOPED = 20
RANKED = ("auroc", "average_precision")


def main() -> None:
    """Print one row a grouping and set of metrics."""
    labels, probabilities = _patches()
    print(f"{N_PATCHES:,} patches, {N_RESAMPLES:,} resamples, one core")
    print(f"{'groups':>8}  {'metrics':<30} {'ours, s':>8} {'loop, s':>8} {'times':>6}")
    for n_groups in (22, 216, N_PATCHES):
        groups = np.arange(N_PATCHES) % n_groups
        loop_s = _seconds(lambda g=groups: _loop(labels, probabilities, g))
        loop_s *= N_RESAMPLES / N_LOOPED
        for title, names in (("AUROC, average precision", RANKED), ("all", tuple(METRICS))):
            ours_s = _seconds(lambda n=names, g=groups: _ours(labels, probabilities, g, n))
            loop = (f"{loop_s:8.0f}", f"{loop_s / ours_s:6.0f}") if names == RANKED else ("", "")
            print(f"{n_groups:>8,}  {title:<30} {ours_s:8.1f} {loop[0]:>8} {loop[1]:>6}")
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"peak memory {peak_mib:.0f} MiB, scikit-learn and the loop included")


def _patches() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = rng.random(N_PATCHES) < 0.4
    return labels, 1 / (1 + np.exp(-rng.normal(3 * labels - 1.5, 1.5)))


def _ours(
    labels: np.ndarray, probabilities: np.ndarray, groups: np.ndarray, names: tuple[str, ...]
) -> None:
    patches = scored(labels, probabilities, threshold=0.3)
    statistics = {name: METRICS[name].statistic(patches) for name in names}
    rng = np.random.default_rng(1)
    resample(statistics, labels, groups, n_resamples=N_RESAMPLES, rng=rng)


def _loop(labels: np.ndarray, probabilities: np.ndarray, groups: np.ndarray) -> None:
    rng = np.random.default_rng(1)
    by_group = np.split(np.argsort(groups, kind="stable"), np.cumsum(np.bincount(groups))[:-1])
    for _ in range(N_LOOPED):
        drawn = rng.integers(len(by_group), size=len(by_group))
        rows = np.concatenate([by_group[group] for group in drawn])
        roc_auc_score(labels[rows], probabilities[rows])
        average_precision_score(labels[rows], probabilities[rows])


def _seconds(work: Callable[[], None]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
