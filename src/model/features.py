"""Pooled features of the frozen backbone: computed once per view, kept on disk."""

from logging import Logger
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from src.data.batches import ordered_batches
from src.data.labelled import LabelledPatches
from src.model.classifier import FEATURE_SCALE
from src.model.inputs import pixel_inputs
from src.system.progress import progress

if TYPE_CHECKING:
    import keras

_CHUNK = 4096


def pooled_features(
    trunk: "keras.Model",
    patches: LabelledPatches,
    *,
    n_views: int,
    batch_size: int,
    file: Path,
    log: Logger,
) -> NDArray[np.float32]:
    """Run every patch through ``trunk`` in views 0 … ``n_views`` - 1.

    Returns (n_views, n, n_features) float32, memory-mapped from ``file``, so that memory stays
    bounded however many patches there are. The file has no name any more when this returns.
    """
    n = len(patches)
    shape = (n_views, n, trunk.output_shape[-1])
    features = np.lib.format.open_memmap(file, mode="w+", dtype=np.float32, shape=shape)
    file.unlink()  # the map keeps the bytes; a killed process leaves nothing behind
    forward = pixel_inputs(trunk, patches)
    with progress(f"features of {patches.split}", n * n_views, "patches", log) as advance:
        for view in range(n_views):
            for batch in ordered_batches(n, batch_size=batch_size, view=view):
                kept = batch.positions[: batch.n_counted]
                features[view, kept] = forward(batch).numpy()[: batch.n_counted]
                advance(batch.n_counted)
    features.flush()
    return features


def standardise_features(model: "keras.Model", features: NDArray[np.float32]) -> None:
    """Give the head the mean and variance of ``features`` (views, n, n_features) of train."""
    flat = features.reshape(-1, features.shape[-1])
    total = np.zeros(flat.shape[1])
    squares = np.zeros(flat.shape[1])
    for start in range(0, len(flat), _CHUNK):
        chunk = flat[start : start + _CHUNK].astype(np.float64)
        total += chunk.sum(axis=0)
        squares += np.square(chunk).sum(axis=0)
    mean = total / len(flat)
    variance = np.maximum(squares / len(flat) - np.square(mean), 0.0)
    model.get_layer(FEATURE_SCALE).set_weights([mean, variance])
