"""Standardised features for the head: their mean and variance, measured on train."""

from typing import TYPE_CHECKING

import numpy as np

from src.data.batches import VIEW_BLOCK, ordered_batches
from src.model.classifier import FEATURE_SCALE
from src.model.inputs import Inputs

if TYPE_CHECKING:
    import keras


def standardise_features(model: "keras.Model", inputs: Inputs, n: int) -> None:
    """Give the head the mean and variance of the ``n`` patches' pooled features as they are.

    ``inputs`` gives features (batch, n_features); view 0 alone is met.
    """
    inputs.prepare(np.zeros(n, np.int64))
    total = squares = np.float64(0.0)
    for batch in ordered_batches(n, batch_size=VIEW_BLOCK):
        features = np.asarray(inputs(batch))[: batch.n_counted].astype(np.float64)
        total = total + features.sum(axis=0)
        squares = squares + np.square(features).sum(axis=0)
    mean = total / n
    variance = np.maximum(squares / n - np.square(mean), 0.0)
    model.get_layer(FEATURE_SCALE).set_weights([mean, variance])
