"""The classifier: preprocessing, backbone and head in one functional model of stock layers.

uint8 patches in, a logit out. Nothing custom is saved. Keras' own ``CenterCrop`` and ``Resizing``
layers are avoided on purpose: their ``training=True`` default leaks into every layer after them
when a model is called without ``training=False``, and BatchNorm then uses, and changes, the wrong
statistics (a test checks that this can't happen here).

:func:`unfreeze` says which layers are trained, :func:`cut` separates them from those that aren't.
"""

from __future__ import annotations

from typing import Any, Literal

import keras

from src.model.backbone import BACKBONES, block_of
from src.params import ModelParams
from src.patch import SHAPE, SIZE_PX
from src.system.errors import ProjectError

# mean of ImageNet in B, G, R, as subtracted when ResNet50 was trained (He et al. 2016, Caffe)
IMAGENET_MEAN_BGR = (103.939, 116.779, 123.68)

LOGIT = "logit"
POOLED = "pooled"
FEATURE_SCALE = "feature_scale"
_GEM_POWER = 3.0
_GEM_FLOOR = 1e-6  # the root's slope is infinite at 0

BatchNormMode = Literal["frozen", "train"]


class TooDeep(ProjectError):
    """More blocks are to be unfrozen than the backbone has."""


def build_classifier(model: ModelParams) -> keras.Model:
    """uint8 (n, 96, 96, 3) → logit (n, 1) float32, with random weights in the backbone.

    The head is pooling → standardised features → dropout → one linear unit that starts at zero.
    Standardising (a fixed affine map whose numbers are measured on train before the head is
    trained) lets one learning rate suit every backbone, input size and pooling.
    """
    patches = patch_input()
    backbone = BACKBONES[model.backbone].build(preprocess(patches, model))
    features = POOLINGS[model.pooling](backbone.output)
    scaled = keras.layers.BatchNormalization(
        center=False, scale=False, trainable=False, name=FEATURE_SCALE
    )(features)
    dropped = keras.layers.Dropout(model.dropout, name="dropout")(scaled)
    logit = keras.layers.Dense(1, kernel_initializer="zeros", dtype="float32", name=LOGIT)(dropped)
    return keras.Model(patches, logit, name="classifier")


def _average(feature_map: Any) -> Any:
    return keras.layers.GlobalAveragePooling2D(name=POOLED)(feature_map)


def _average_and_max(feature_map: Any) -> Any:
    average = keras.layers.GlobalAveragePooling2D(name="pooled_avg")(feature_map)
    highest = keras.layers.GlobalMaxPooling2D(name="pooled_max")(feature_map)
    return keras.layers.Concatenate(name=POOLED)([average, highest])


def _generalised_mean(feature_map: Any) -> Any:
    """(mean of x^p)^(1/p), between mean (p = 1) and maximum (p → ∞).

    Radenović, Tolias & Chum 2018, eq. 3, with p fixed at the value they start from: a p that is
    learnt would need a layer of our own in the saved file. In float32 whatever the policy: cubes
    leave float16's range.
    """
    x = keras.ops.maximum(keras.ops.cast(feature_map, "float32"), _GEM_FLOOR)
    cubes = keras.ops.mean(keras.ops.power(x, _GEM_POWER), axis=(1, 2))
    mean = keras.ops.power(cubes, 1 / _GEM_POWER)
    return keras.layers.Identity(dtype="float32", name=POOLED)(mean)


POOLINGS = {"avg": _average, "avg_max": _average_and_max, "gem": _generalised_mean}


def patch_input() -> keras.KerasTensor:
    """The model's input: (n, 96, 96, 3) uint8 RGB."""
    return keras.Input(SHAPE, dtype="uint8", name="patch")


def preprocess(patches: Any, model: ModelParams) -> Any:
    """uint8 RGB (n, 96, 96, 3) → float32 BGR less the ImageNet means, (n, s, s, 3).

    Centre crop to ``model.centre_crop`` px, then bilinear resize to ``model.input_size`` px; each
    only where it changes the size.
    """
    x = keras.layers.Rescaling(1.0, name="to_float")(patches)
    if model.centre_crop is not None and model.centre_crop != SIZE_PX:
        margin_px = (SIZE_PX - model.centre_crop) // 2
        x = keras.layers.Cropping2D(margin_px, name="centre_crop")(x)
    if x.shape[1] != model.input_size:
        size = (model.input_size, model.input_size)
        x = keras.ops.image.resize(x, size, interpolation="bilinear")
    x = keras.ops.flip(x, axis=-1)
    offset = [-mean for mean in IMAGENET_MEAN_BGR]
    return keras.layers.Rescaling(1.0, offset=offset, name="subtract_imagenet_mean")(x)


def unfreeze(model: keras.Model, *, backbone: str, depth: int, batch_norm: BatchNormMode) -> None:
    """Make the head and the top ``depth`` blocks trainable and freeze everything else.

    ``depth`` 0 frees the head alone; all blocks (16 in ResNet50) free the stem too. BatchNorm
    layers of the freed blocks use the batch's statistics and learn when ``batch_norm`` is
    ``train``; when ``frozen`` they keep their stored statistics and their scale and offset.
    """
    blocks = BACKBONES[backbone].blocks
    if depth > len(blocks):
        raise TooDeep(
            f"{backbone} has {len(blocks)} residual blocks (got depth: {depth}); lower it"
        )
    lowest_freed = len(blocks) - depth
    for layer in model.layers:
        block = block_of(layer.name, blocks)
        freed = (
            layer.name == LOGIT
            or (block is not None and block >= lowest_freed)
            or (depth == len(blocks) and is_stem(layer))
        )
        is_batch_norm = isinstance(layer, keras.layers.BatchNormalization)
        layer.trainable = freed and not (is_batch_norm and batch_norm == "frozen")


def boundary_layer(*, backbone: str, depth: int) -> str | None:
    """Name of the layer whose output the tail of ``depth`` blocks starts from.

    The pooled features at depth 0; None when everything is trained and there is no trunk, at the
    number of blocks and beyond.
    """
    blocks = BACKBONES[backbone].blocks
    if depth == 0:
        return POOLED
    if depth >= len(blocks):
        return None
    return f"{blocks[-depth - 1]}_out"


def cut(model: keras.Model, *, backbone: str, depth: int) -> tuple[keras.Model | None, keras.Model]:
    """Cut the classifier into trunk (uint8 patches → activations) and tail (→ logit).

    Both share the classifier's variables, so training the tail trains the classifier. The trunk
    is None when ``depth`` leaves nothing frozen; the tail is then the classifier itself.
    """
    boundary = boundary_layer(backbone=backbone, depth=depth)
    if boundary is None:
        return None, model
    activations = model.get_layer(boundary).output
    trunk = keras.Model(model.input, activations, name="trunk")
    tail = keras.Model(activations, model.output, name="tail")
    return trunk, tail


def is_stem(layer: keras.layers.Layer) -> bool:
    """Whether the layer stands below the first residual block and holds weights of its own."""
    return bool(layer.name.startswith("conv1_"))
