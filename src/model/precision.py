"""Mixed precision: the top blocks computed in bfloat16, their weights kept in float32.

bfloat16 has float32's range, so no loss scaling is needed. GPUs before compute capability 8.0
(T4, V100, P100) have float16 alone and stay in float32.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

from src.model.classifier import LOGIT

if TYPE_CHECKING:
    import keras

_FIRST_CAPABILITY = (8, 0)


def uses_bfloat16(setting: Literal["auto", "on", "off"]) -> bool:
    """Whether to train in bfloat16; ``auto``: where every visible GPU is made for it."""
    if setting != "auto":
        return setting == "on"
    import tensorflow as tf

    gpus = tf.config.get_visible_devices("GPU")
    details = [tf.config.experimental.get_device_details(gpu) for gpu in gpus]
    return bool(gpus) and all(
        detail.get("compute_capability", (0, 0)) >= _FIRST_CAPABILITY for detail in details
    )


@contextmanager
def bfloat16_layers(model: "keras.Model") -> Iterator[None]:
    """Every layer but the logit computes in bfloat16 while the block runs; variables don't change.

    Layers whose policy was changed get their own back, so that a saved file is the same.
    """
    import keras

    layers = [layer for layer in model.layers if layer.name != LOGIT]
    before = [layer.dtype_policy for layer in layers]
    try:
        for layer in layers:
            layer.dtype_policy = keras.DTypePolicy("mixed_bfloat16")
        yield
    finally:
        for layer, policy in zip(layers, before, strict=True):
            layer.dtype_policy = policy
