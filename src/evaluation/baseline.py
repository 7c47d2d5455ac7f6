"""The floor: the better on val of two models of colour histograms, which hold no shapes.

One draws a line, the other doesn't: where classes differ by a combination of colours, a line alone
is too low a floor.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from src.evaluation.metrics import Floats, auroc
from src.system.errors import ProjectError

TITLES = {
    "baseline_logistic": "logistic regression",
    "baseline_trees": "gradient-boosted trees",
}
"""The models by their column of ``predictions.parquet``."""

N_FEATURES = 3 * 16 + 4 * 4 * 4
_LEVELS = 16  # a channel; the joint histogram of all three has 4,096 bins
_CHUNK_PATCHES = 64  # 0.6 M pixels and 0.3 M bins: a few MiB, however many patches
_MAX_ITERATIONS = 2000


def colour_histograms(
    pixels: NDArray[np.uint8],
    rows: NDArray[np.integer[Any]],
    *,
    advance: Callable[[int], object] | None = None,
) -> NDArray[np.float32]:
    """Colour histograms of the patches at ``rows`` of ``pixels`` (m, h, w, 3), which may be mapped.

    Returns (n, 112) shares of the patch's pixels: 16 levels each of R, G and B, then the joint
    4 × 4 × 4 levels of all three. ``advance(n)`` is called as n more patches are done.
    """
    histograms = np.empty((len(rows), N_FEATURES), dtype=np.float32)
    for start in range(0, len(rows), _CHUNK_PATCHES):
        chunk = slice(start, start + _CHUNK_PATCHES)
        patches = pixels[rows[chunk]]
        histograms[chunk] = _joint_counts(patches) @ _marginals()
        if advance is not None:
            advance(len(patches))
    histograms /= pixels.shape[1] * pixels.shape[2]
    return histograms


def fit_baselines(
    histograms: NDArray[np.float32], labels: NDArray[np.integer[Any]], *, seed: int
) -> dict[str, Any]:
    """Both models of ``TITLES``, fitted to (n, 112) and ``labels`` (n,); deterministic.

    Raises
    ------
    ProjectError
        ``labels`` are all of one class.
    """
    if len(np.unique(labels)) < 2:
        raise ProjectError(
            f"the baseline needs both classes in train; got {len(labels)} patches of one: "
            "split again with more groups in train"
        )
    models = {
        "baseline_logistic": make_pipeline(
            StandardScaler(),
            LogisticRegression(class_weight="balanced", max_iter=_MAX_ITERATIONS),
        ),
        # early stopping would hold out single patches, not groups
        "baseline_trees": HistGradientBoostingClassifier(early_stopping=False, random_state=seed),
    }
    # one thread: 12 s on 154,000 patches, and where others are busy OpenMP's threads only wait
    with threadpool_limits(1):
        return {name: model.fit(histograms, labels) for name, model in models.items()}


def baseline_probability(model: Any, histograms: NDArray[np.float32]) -> Floats:
    """Probability (n,) of tumour by a model of :func:`fit_baselines`."""
    probabilities: Floats = model.predict_proba(histograms)[:, 1].astype(np.float64)
    return probabilities


def val_aurocs(val: pd.DataFrame) -> dict[str, float]:
    """Column of ``TITLES`` → AUROC on the val rows of ``predictions.parquet``."""
    return {name: auroc(val["label"], val[name]) for name in TITLES}


def stronger(val: pd.DataFrame) -> str:
    """The column of ``TITLES`` with the higher AUROC on val; of equals the first."""
    found = val_aurocs(val)
    return max(found, key=found.__getitem__)


def _joint_counts(patches: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Pixels of each patch at each of 16 × 16 × 16 levels, (n, 4096); exact in float32."""
    n_bins = _LEVELS**3
    red, green, blue = (patches[..., channel] for channel in range(3))
    codes = (red & 0xF0).astype(np.uint16)  # R R R R G G G G B B B B, as bits
    codes <<= 4
    codes |= green & 0xF0
    codes |= blue >> 4
    places = codes.reshape(len(patches), -1) + np.arange(len(patches))[:, None] * n_bins
    counts = np.bincount(places.ravel(), minlength=len(patches) * n_bins)
    return counts.reshape(-1, n_bins).astype(np.float32)


@cache
def _marginals() -> NDArray[np.float32]:
    """(4096, 112): which features each joint level adds to, 1 or 0."""
    red, green, blue = np.indices((_LEVELS, _LEVELS, _LEVELS)).reshape(3, -1)
    coarse = (red // 4 * 4 + green // 4) * 4 + blue // 4
    blocks = [channel[:, None] == np.arange(_LEVELS) for channel in (red, green, blue)]
    blocks.append(coarse[:, None] == np.arange(64))
    return np.concatenate(blocks, axis=1).astype(np.float32)
