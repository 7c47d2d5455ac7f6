"""The convolutional network without its head, and the names of its residual blocks.

A new backbone is one entry of :data:`BACKBONES`; ``tests/model/test_backbone.py`` holds what every
entry must do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras


@dataclass(frozen=True)
class Backbone:
    """How one network is built and cut.

    Attributes
    ----------
    build : preprocessed tensor (n, s, s, 3) → functional model that ends in its last feature map
    blocks : names of the residual blocks, bottom first; each ends in the layer ``<block>_out``
    imagenet : where its ImageNet weights are, None where there are none
    """

    build: Callable[[Any], Any]
    blocks: tuple[str, ...]
    imagenet: PinnedFile | None


@dataclass(frozen=True)
class PinnedFile:
    """A download that is only accepted with these bytes."""

    url: str
    n_bytes: int
    md5: str


def _resnet50(preprocessed: Any) -> Any:
    return keras.applications.ResNet50(include_top=False, weights=None, input_tensor=preprocessed)


def _resnet_tiny(preprocessed: Any) -> Any:
    """ResNet50's plan with one bottleneck block a stage and an eighth of its channels."""
    x = _convolved(preprocessed, "conv1", n=8, size=7, stride=2)
    x = keras.layers.MaxPooling2D(3, strides=2, padding="same", name="pool1_pool")(x)
    for stage, n in enumerate((8, 16, 32, 64), start=2):
        x = _bottleneck(x, f"conv{stage}_block1", n=n, stride=1 if stage == 2 else 2)
    return keras.Model(keras.utils.get_source_inputs(preprocessed), x)


def _bottleneck(x: Any, name: str, *, n: int, stride: int) -> Any:
    shortcut = _convolved(x, f"{name}_0", n=4 * n, size=1, stride=stride, relu=False)
    x = _convolved(x, f"{name}_1", n=n, size=1, stride=stride)
    x = _convolved(x, f"{name}_2", n=n, size=3, stride=1)
    x = _convolved(x, f"{name}_3", n=4 * n, size=1, stride=1, relu=False)
    x = keras.layers.Add(name=f"{name}_add")([shortcut, x])
    return keras.layers.Activation("relu", name=f"{name}_out")(x)


def _convolved(x: Any, name: str, *, n: int, size: int, stride: int, relu: bool = True) -> Any:
    x = keras.layers.Conv2D(n, size, strides=stride, padding="same", name=f"{name}_conv")(x)
    x = keras.layers.BatchNormalization(epsilon=1.001e-5, name=f"{name}_bn")(x)
    return keras.layers.Activation("relu", name=f"{name}_relu")(x) if relu else x


def _resnet_blocks(blocks_per_stage: dict[str, int]) -> tuple[str, ...]:
    return tuple(
        f"{stage}_block{number}"
        for stage, n_blocks in blocks_per_stage.items()
        for number in range(1, n_blocks + 1)
    )


BACKBONES = {
    "resnet50": Backbone(
        build=_resnet50,
        blocks=_resnet_blocks({"conv2": 3, "conv3": 4, "conv4": 6, "conv5": 3}),
        imagenet=PinnedFile(
            url=(
                "https://storage.googleapis.com/tensorflow/keras-applications/resnet/"
                "resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5"
            ),
            n_bytes=94_765_736,
            md5="4d473c1dd8becc155b73f8504c6f6626",
        ),
    ),
    "resnet_tiny": Backbone(
        build=_resnet_tiny,
        blocks=_resnet_blocks({"conv2": 1, "conv3": 1, "conv4": 1, "conv5": 1}),
        imagenet=None,
    ),
}


def block_of(layer_name: str, blocks: tuple[str, ...]) -> int | None:
    """Index into ``blocks`` of the block a layer belongs to; None for the stem and the head."""
    for index, block in enumerate(blocks):
        if layer_name.startswith(f"{block}_"):
            return index
    return None
