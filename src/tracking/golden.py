"""The golden batch: 8 patches and the logits they gave, stored with the version they prove.

A version that doesn't reproduce its logits isn't what was registered, or doesn't run here as it ran
there: other software, another processor, a swapped model with a matching manifest.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from src.tracking.logged_models import VerificationError

N_PATCHES = 8
PATCHES_FILE = "evidence/golden_patches.npy"
LOGITS_FILE = "evidence/golden_logits.npy"

_PROBABILITY_LAYER = "probability"


@dataclass(frozen=True)
class Golden:
    """``patches`` (8, 96, 96, 3) uint8 and ``logits`` (8,) float64, calibrated, before sigmoid."""

    patches: NDArray[np.uint8]
    logits: NDArray[np.float64]


def golden_rows(scores: NDArray[np.float64]) -> NDArray[np.int64]:
    """Positions of 8 patches, spread evenly over the ranks of their scores (n,), both ends among
    them: a model that says the same of every patch can't reproduce their logits.
    """
    ranked = np.argsort(scores, kind="stable")
    places = np.linspace(0, len(ranked) - 1, min(N_PATCHES, len(ranked)))
    return ranked[places.round().astype(np.int64)]


def logits_of(model: Any, patches: NDArray[np.uint8]) -> NDArray[np.float64]:
    """What enters the layer ``probability`` of the final model, (n,).

    Logits, because a probability near 0 or 1 hides a difference in the float32 it is stored in.

    Raises
    ------
    VerificationError
        The model has no such layer: it isn't one of this project's.
    """
    import keras

    try:
        logit = model.get_layer(_PROBABILITY_LAYER).input
    except ValueError as error:
        raise VerificationError(
            f"model verification failed: no layer named {_PROBABILITY_LAYER!r}; register "
            "models/final of this project's evaluate"
        ) from error
    outputs = keras.Model(model.input, logit)(patches, training=False)
    logits: NDArray[np.float64] = np.asarray(outputs, dtype=np.float64)[:, 0]
    return logits


def write_golden(folder: Path, golden: Golden) -> dict[str, Path]:
    """Write both arrays below ``folder``; return path in the version → file."""
    files = {PATCHES_FILE: folder / "patches.npy", LOGITS_FILE: folder / "logits.npy"}
    np.save(files[PATCHES_FILE], golden.patches)
    np.save(files[LOGITS_FILE], golden.logits)
    return files


def read_golden(folder: Path) -> Golden | None:
    """The batch in a version's verified folder; None where it was registered without."""
    if not (folder / LOGITS_FILE).is_file():
        return None
    patches = np.load(folder / PATCHES_FILE, allow_pickle=False)
    return Golden(patches, np.load(folder / LOGITS_FILE, allow_pickle=False))


def golden_error(model: Any, golden: Golden | None) -> float | None:
    """Largest difference in logit between the model here and the batch; NaN where one is NaN.

    None without a batch.
    """
    if golden is None:
        return None
    return float(np.abs(logits_of(model, golden.patches) - golden.logits).max())
