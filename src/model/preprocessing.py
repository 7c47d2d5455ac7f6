"""Preprocessing as part of the model: uint8 patches in, what ResNet50 was trained on out.

Only stock layers and operations stand here, so that nothing custom is saved. Keras' own
``CenterCrop`` and ``Resizing`` layers are avoided on purpose: their ``training=True`` default leaks
into every layer after them when a model is called without ``training=False``, and BatchNorm then
uses, and changes, the wrong statistics (a test holds that this can't happen here).
"""

from typing import TYPE_CHECKING, Any

from src.params import ModelParams

if TYPE_CHECKING:
    import keras

PATCH_SIZE_PX = 96

# mean of ImageNet in B, G, R, as subtracted when ResNet50 was trained (He et al. 2016, Caffe)
IMAGENET_MEAN_BGR = (103.939, 116.779, 123.68)


def patch_input() -> "keras.KerasTensor":
    """The model's input: (n, 96, 96, 3) uint8 RGB."""
    import keras

    return keras.Input((PATCH_SIZE_PX, PATCH_SIZE_PX, 3), dtype="uint8", name="patch")


def preprocess(patches: Any, model: ModelParams) -> Any:
    """uint8 RGB (n, 96, 96, 3) → float32 BGR less the ImageNet means, (n, s, s, 3).

    Centre crop to ``model.centre_crop`` px, then bilinear resize to ``model.input_size`` px; each
    only where it changes the size.
    """
    import keras

    x = keras.layers.Rescaling(1.0, name="to_float")(patches)
    if model.centre_crop is not None and model.centre_crop != PATCH_SIZE_PX:
        margin_px = (PATCH_SIZE_PX - model.centre_crop) // 2
        x = keras.layers.Cropping2D(margin_px, name="centre_crop")(x)
    if x.shape[1] != model.input_size:
        size = (model.input_size, model.input_size)
        x = keras.ops.image.resize(x, size, interpolation="bilinear")
    x = keras.ops.flip(x, axis=-1)
    offset = [-mean for mean in IMAGENET_MEAN_BGR]
    return keras.layers.Rescaling(1.0, offset=offset, name="subtract_imagenet_mean")(x)
