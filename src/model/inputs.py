"""What enters the tail: activations of the frozen trunk, for a batch of patches and views."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from src.data.batches import Batch
from src.data.labelled import LabelledPatches
from src.data.views import apply_views

if TYPE_CHECKING:
    import keras

Inputs = Callable[[Batch], Any]
"""A batch of positions → float32 activations (batch, …); uint8 pixels where nothing is frozen."""


def pixel_inputs(trunk: "keras.Model | None", patches: LabelledPatches) -> Inputs:
    """Read the pixels, apply the views, and run the trunk in inference mode, batch by batch."""
    forward = _inference(trunk) if trunk is not None else _as_tensor

    def activations(batch: Batch) -> Any:
        pixels = patches.pixels[patches.rows[batch.positions]]
        return forward(apply_views(pixels, batch.views))

    return activations


def feature_inputs(features: NDArray[np.float32]) -> Inputs:
    """Pick rows of features computed once, (views, n, n_features) float32."""

    def activations(batch: Batch) -> Any:
        return _as_tensor(features[batch.views, batch.positions])

    return activations


def _inference(trunk: "keras.Model") -> Callable[[NDArray[np.uint8]], Any]:
    import tensorflow as tf

    @tf.function(reduce_retracing=True)
    def forward(pixels: Any) -> Any:
        return trunk(pixels, training=False)

    return lambda pixels: forward(tf.constant(pixels))


def _as_tensor(values: NDArray[Any]) -> Any:
    import tensorflow as tf

    return tf.constant(values)
