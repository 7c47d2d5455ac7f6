"""The convolutional network without its head, and the names of its residual blocks.

A new backbone is one entry of :data:`BACKBONES`; ``tests/model/test_backbone.py`` holds what every
entry must do.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


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
    imagenet: "PinnedFile | None"


@dataclass(frozen=True)
class PinnedFile:
    """A download that is only accepted with these bytes."""

    url: str
    n_bytes: int
    md5: str


def _resnet50(preprocessed: Any) -> Any:
    import keras

    return keras.applications.ResNet50(include_top=False, weights=None, input_tensor=preprocessed)


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
}


def block_of(layer_name: str, blocks: tuple[str, ...]) -> int | None:
    """Index into ``blocks`` of the block a layer belongs to; None for the stem and the head."""
    for index, block in enumerate(blocks):
        if layer_name.startswith(f"{block}_"):
            return index
    return None
