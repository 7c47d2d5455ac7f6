"""Test-time augmentation: the mean logit over the 8 flips and rotations of the square.

Logits are averaged, not probabilities: the mean can then be calibrated as a single
logit is, and what is served stays logit → scale and shift → sigmoid.
"""

from logging import Logger
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from src.data.batches import ordered_batches
from src.data.views import N_VIEWS, apply_view, view_steps
from src.system.progress import progress

if TYPE_CHECKING:
    import keras


def predict_view_logits(
    model: "keras.Model",
    pixels: NDArray[np.uint8],
    rows: NDArray[np.int64],
    *,
    batch_size: int,
    log: Logger,
    task: str = "scored",
) -> NDArray[np.float64]:
    """The model's logit for each view of ``pixels[rows]``: (8, n) in the order of ``rows``.

    As :func:`src.model.inference.predict_outputs`, view by view of each batch, so that memory is
    that of one view. Row 0 is the patch as it is.
    """
    import tensorflow as tf

    @tf.function(reduce_retracing=True, autograph=False)
    def forward(batch: Any) -> Any:
        return model(batch, training=False)[:, 0]

    logits = np.empty((N_VIEWS, len(rows)))
    with progress(task, N_VIEWS * len(rows), "views", log) as advance:
        for batch in ordered_batches(len(rows), batch_size=min(batch_size, len(rows))):
            patches = pixels[rows[batch.positions]]
            counted = batch.positions[: batch.n_counted]
            for view in range(N_VIEWS):
                values = forward(tf.constant(apply_view(patches, view))).numpy()
                logits[view, counted] = values[: batch.n_counted]
                advance(batch.n_counted)
    return logits


def averaged_over_views(model: "keras.Model") -> "keras.Model":
    """The same input, (n, 96, 96, 3) uint8, to the mean logit (n, 1) over its 8 views.

    Of stock operations, so that it is saved and served like any model. All views go through
    ``model`` as one batch of 8 n: where memory runs out, lower ``runtime.inference_batch_size``.
    """
    import keras

    ops = keras.ops
    patches = keras.Input(model.input.shape[1:], dtype="uint8", name="patch")
    views = ops.concatenate([_viewed(patches, view) for view in range(N_VIEWS)], axis=0)
    logits = ops.reshape(model(views), (N_VIEWS, -1))
    mean = ops.expand_dims(ops.mean(logits, axis=0), axis=-1)
    return keras.Model(patches, mean, name="averaged_classifier")


def _viewed(patches: Any, view: int) -> Any:
    import keras

    transpose, flip_rows, flip_columns = view_steps(view)
    if transpose:
        patches = keras.ops.transpose(patches, (0, 2, 1, 3))
    flipped = [axis for axis, is_flipped in ((1, flip_rows), (2, flip_columns)) if is_flipped]
    return keras.ops.flip(patches, axis=flipped) if flipped else patches
