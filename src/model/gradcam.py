"""Grad-CAM: where in a patch the evidence for a decision lay (Selvaraju et al. 2017, eq. 1-2).

Channels count from their mean over train, which the head subtracts, not from 0: a channel that is
positive everywhere would speak for the same class in every patch. With average pooling a map before
its cut at 0 then adds up to logit − bias: nothing of the decision is lost.

A map has one cell a position of the last feature map, a handful over the patch, and each cell has
seen more of the patch than the square it covers: it says roughly where, never which cell.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

from src.model.classifier import FEATURE_SCALE
from src.patch import CENTRE_PX, SIZE_PX

Floats = NDArray[np.float64]


class Explanation(NamedTuple):
    """Where the evidence for the decisions on n patches lay.

    ``maps`` (n, h, w) of :func:`gradcam`, ``on_patch`` (n, 96, 96) the same on the pixels in
    0 … 1, ``centre_share`` (n,) and ``centre_area``: the centre's share of the evidence and of the
    square of ``seen_px`` that the model sees.
    """

    maps: Floats
    on_patch: Floats
    centre_share: Floats
    centre_area: float
    seen_px: int


_BATCH_PATCHES = 32


def explain(
    model: keras.Model, patches: NDArray[np.uint8], for_tumour: NDArray[np.bool_]
) -> Explanation:
    """:func:`gradcam` of the patches, where it lies on them, and how much of it in the centre."""
    maps, seen_px = gradcam(model, patches, for_tumour), visible_px(model)
    return Explanation(
        maps,
        on_patch(maps, seen_px=seen_px),
        centre_share(maps, seen_px=seen_px),
        centre_area(seen_px),
        seen_px,
    )


def gradcam(
    model: keras.Model, patches: NDArray[np.uint8], for_tumour: NDArray[np.bool_]
) -> Floats:
    """(n, h, w) evidence ≥ 0 at each position of the last feature map of a functional classifier.

    ``patches`` (n, 96, 96, 3) uint8; ``for_tumour`` (n,): True explains the logit, False its
    negative, the evidence for normal. Each channel's weight is the mean of its gradient.
    """
    return np.maximum(signed_evidence(model, patches, for_tumour), 0.0)


def signed_evidence(
    model: keras.Model, patches: NDArray[np.uint8], for_tumour: NDArray[np.bool_]
) -> Floats:
    """The maps of :func:`gradcam` before what speaks against the decision is cut off."""
    features, gradients = feature_gradients(model, patches, for_tumour)
    weights = gradients.mean(axis=(1, 2), dtype=np.float64)
    centred = features - _training_mean(model, features.shape[-1])
    evidence: Floats = np.einsum("nhwc,nc->nhw", centred, weights)
    return evidence


def feature_gradients(
    model: keras.Model, patches: NDArray[np.uint8], for_tumour: NDArray[np.bool_]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The last feature map (n, h, w, c), and the gradient there of the logit that is explained."""
    features, gradients = zip(*_batches(model, patches, for_tumour), strict=True)
    return np.concatenate(features), np.concatenate(gradients)


def _training_mean(model: keras.Model, n_channels: int) -> NDArray[np.float32]:
    """(c,) mean of each averaged channel over train, 0 where the head doesn't standardise."""
    if FEATURE_SCALE not in {layer.name for layer in model.layers}:
        return np.zeros(n_channels, np.float32)
    # with avg_max pooling the averages come first
    mean: NDArray[np.float32] = np.asarray(model.get_layer(FEATURE_SCALE).moving_mean)
    return mean[:n_channels]


def visible_px(model: keras.Model) -> int:
    """Side of the centred square of the patch that the model sees: 96 without a centre crop."""
    names = {layer.name for layer in model.layers}
    if "centre_crop" not in names:
        return SIZE_PX
    return int(model.get_layer("centre_crop").output.shape[1])


def centre_share(maps: Floats, *, seen_px: int) -> Floats:
    """(n,) share of each map's evidence inside the centre 32 × 32 px; NaN for a map of zeros.

    ``maps`` (n, h, w) cover the centred square of ``seen_px``; a cell that the centre square cuts
    counts by area. Compare with :func:`centre_area`.
    """
    rows, columns = (_overlap(maps.shape[axis], seen_px) for axis in (1, 2))
    inside = np.einsum("nhw,h,w->n", maps, rows, columns)
    total = maps.sum(axis=(1, 2))
    nothing = np.full(len(maps), np.nan)
    return np.asarray(np.divide(inside, total, out=nothing, where=total > 0))


def centre_area(seen_px: int) -> float:
    """Share of the seen area that is the centre square: 1/9 of a whole patch."""
    return (CENTRE_PX / seen_px) ** 2


def on_patch(maps: Floats, *, seen_px: int) -> Floats:
    """(n, 96, 96) maps scaled to 0 … 1 each, bilinear, 0 where the model sees nothing."""
    n, height, width = maps.shape
    margin_px = (SIZE_PX - seen_px) // 2
    highest = maps.max(axis=(1, 2), keepdims=True)
    scaled = np.divide(maps, highest, out=np.zeros_like(maps), where=highest > 0)
    centres = np.arange(seen_px) + 0.5  # px, of the seen square
    grid = np.meshgrid(
        centres * height / seen_px - 0.5, centres * width / seen_px - 0.5, indexing="ij"
    )
    placed = np.zeros((n, SIZE_PX, SIZE_PX))
    seen = slice(margin_px, margin_px + seen_px)
    for index in range(n):
        placed[index, seen, seen] = map_coordinates(scaled[index], grid, order=1, mode="nearest")
    return placed


def _overlap(n_cells: int, seen_px: int) -> Floats:
    """(n_cells,) share of each cell's side that lies within the centre square."""
    edges = np.linspace(0, seen_px, n_cells + 1)
    low, high = (seen_px - CENTRE_PX) / 2, (seen_px + CENTRE_PX) / 2
    inside = np.clip(edges[1:], low, high) - np.clip(edges[:-1], low, high)
    return np.asarray(inside / (seen_px / n_cells))


def _batches(
    model: keras.Model, patches: NDArray[np.uint8], for_tumour: NDArray[np.bool_]
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    feature_map = [layer.output for layer in model.layers if len(layer.output.shape) == 4][-1]
    trunk = keras.Model(model.input, feature_map)
    tail = keras.Model(feature_map, model.output)
    signs = np.where(for_tumour, 1.0, -1.0).astype(np.float32)

    @tf.function(reduce_retracing=True, autograph=False)
    def explain(batch: Any, sign: Any) -> Any:
        features = trunk(batch, training=False)
        with tf.GradientTape() as tape:
            tape.watch(features)
            # each logit depends on its own patch alone: the gradient of the sum is each one's own
            explained = tf.reduce_sum(sign * tail(features, training=False)[:, 0])
        return features, tape.gradient(explained, features)

    for start in range(0, len(patches), _BATCH_PATCHES):
        chunk = slice(start, start + _BATCH_PATCHES)
        features, gradients = explain(tf.constant(patches[chunk]), tf.constant(signs[chunk]))
        yield features.numpy(), gradients.numpy()
