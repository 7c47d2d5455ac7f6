"""Small models and patches for the model room's tests."""

import numpy as np

from src.data.labelled import LabelledPatches
from src.params import ModelParams

SMALL = ModelParams(
    backbone="resnet50", weights="none", input_size=32, centre_crop=None, pooling="avg", dropout=0.2
)


def random_patches(n: int, *, seed: int = 0) -> np.ndarray:
    """(n, 96, 96, 3) uint8."""
    return np.random.default_rng(seed).integers(0, 256, (n, 96, 96, 3), dtype=np.uint8)


def labelled(pixels: np.ndarray, labels: list[int], *, split: str = "train") -> LabelledPatches:
    """Patches of which each is its own group."""
    n = len(labels)
    ids = np.array([f"{i:040x}" for i in range(n)])
    return LabelledPatches(split, ids, np.arange(n), np.array(labels, np.uint8), ids, pixels)
