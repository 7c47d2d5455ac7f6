"""The golden batch: 8 patches and the logits they gave, stored with the version they prove.

A version that doesn't reproduce its logits isn't what was registered, or doesn't run here as it ran
there: other software, another processor, a swapped model with a matching manifest.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

N_PATCHES = 8
PATCHES_FILE = "evidence/golden_patches.npy"
LOGITS_FILE = "evidence/golden_logits.npy"


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
