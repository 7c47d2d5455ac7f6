"""Test-time augmentation: the mean logit over the 8 flips and rotations of the square.

Logits are averaged, not probabilities: the mean can then be calibrated as a single
logit is, and what is served stays logit → scale and shift → sigmoid.
"""

from logging import Logger
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from src.data.batches import N_VIEWS, view_steps
from src.data.dataset import LabelledPatches
from src.model.inference import VIEWS_LAYER, predict_outputs

if TYPE_CHECKING:
    import keras


def logits_by_view(
    model: "keras.Model",
    patches: LabelledPatches,
    *,
    all_views: bool,
    batch_size: int,
    log: Logger,
) -> NDArray[np.float64]:
    """(views, n) logits of a split: of its 8 views, or of the patch as it is alone.

    By the graph that is served, up to the mean over the views.
    """
    logits = predict_outputs(
        view_logits(model) if all_views else model,
        patches.pixels,
        patches.rows,
        batch_size=batch_size,
        log=log,
        task=f"{patches.split}: scored",
    )
    return np.atleast_2d(logits.T)


def view_logits(model: "keras.Model") -> "keras.Model":
    """The same input, (n, 96, 96, 3) uint8, to the logits (n, 8) of its views.

    Column 0 is the patch as it is. Of stock operations, so that it is saved and served like any
    model. All views go through ``model`` as one batch of 8 n.
    """
    import keras

    ops = keras.ops
    patches = keras.Input(model.input.shape[1:], dtype="uint8", name="patch")
    turned = ops.concatenate([_viewed(patches, view) for view in range(N_VIEWS)], axis=0)
    turned = keras.layers.Identity(dtype="uint8", name=VIEWS_LAYER)(turned)
    return keras.Model(patches, ops.transpose(ops.reshape(model(turned), (N_VIEWS, -1))))


def averaged_over_views(model: "keras.Model") -> "keras.Model":
    """The same input to the mean logit (n, 1) over its 8 views: the graph of :func:`view_logits`
    and a mean."""
    import keras

    by_view = view_logits(model)
    mean = keras.ops.mean(by_view.output, axis=-1, keepdims=True)
    return keras.Model(by_view.input, mean, name="averaged_classifier")


def _viewed(patches: Any, view: int) -> Any:
    import keras

    transpose, flip_rows, flip_columns = view_steps(view)
    if transpose:
        patches = keras.ops.transpose(patches, (0, 2, 1, 3))
    flipped = [axis for axis, is_flipped in ((1, flip_rows), (2, flip_columns)) if is_flipped]
    return keras.ops.flip(patches, axis=flipped) if flipped else patches
