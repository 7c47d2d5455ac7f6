"""Which layers are trained: the head, and the top ``depth`` residual blocks, by name."""

from typing import TYPE_CHECKING, Literal

from src.model.backbone import BACKBONES, block_of
from src.model.classifier import LOGIT, POOLED
from src.system.errors import ProjectError

if TYPE_CHECKING:
    import keras


class TooDeep(ProjectError):
    """More blocks are to be unfrozen than the backbone has."""


BatchNormMode = Literal["frozen", "train"]


def unfreeze(model: "keras.Model", *, backbone: str, depth: int, batch_norm: BatchNormMode) -> None:
    """Make the head and the top ``depth`` blocks trainable and freeze everything else.

    ``depth`` 0 frees the head alone; all blocks (16 in ResNet50) free the stem too. BatchNorm
    layers of the freed blocks use the batch's statistics and learn when ``batch_norm`` is
    ``train``; when ``frozen`` they keep their stored statistics and their scale and offset.
    """
    import keras

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


def cut(
    model: "keras.Model", *, backbone: str, depth: int
) -> tuple["keras.Model | None", "keras.Model"]:
    """Cut the classifier into trunk (uint8 patches → activations) and tail (→ logit).

    Both share the classifier's variables, so training the tail trains the classifier. The trunk
    is None when ``depth`` leaves nothing frozen; the tail is then the classifier itself.
    """
    import keras

    boundary = boundary_layer(backbone=backbone, depth=depth)
    if boundary is None:
        return None, model
    activations = model.get_layer(boundary).output
    trunk = keras.Model(model.input, activations, name="trunk")
    tail = keras.Model(activations, model.output, name="tail")
    return trunk, tail


def is_stem(layer: "keras.layers.Layer") -> bool:
    """Whether the layer stands below the first residual block and holds weights of its own."""
    return bool(layer.name.startswith("conv1_"))
