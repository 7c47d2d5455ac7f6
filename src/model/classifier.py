"""The classifier: preprocessing, backbone and head in one functional model of stock layers."""

from typing import TYPE_CHECKING, Any

from src.model.backbone import BACKBONES
from src.model.preprocessing import patch_input, preprocess
from src.params import ModelParams

if TYPE_CHECKING:
    import keras

LOGIT = "logit"
POOLED = "pooled"
FEATURE_SCALE = "feature_scale"
_GEM_POWER = 3.0
_GEM_FLOOR = 1e-6  # the root's slope is infinite at 0


def build_classifier(model: ModelParams) -> "keras.Model":
    """uint8 (n, 96, 96, 3) → logit (n, 1) float32, with random weights in the backbone.

    The head is pooling → standardised features → dropout → one linear unit that starts at zero.
    Standardising (a fixed affine map whose numbers are measured on train before the head is
    trained) lets one learning rate suit every backbone, input size and pooling.
    """
    import keras

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
    import keras

    return keras.layers.GlobalAveragePooling2D(name=POOLED)(feature_map)


def _average_and_max(feature_map: Any) -> Any:
    import keras

    average = keras.layers.GlobalAveragePooling2D(name="pooled_avg")(feature_map)
    highest = keras.layers.GlobalMaxPooling2D(name="pooled_max")(feature_map)
    return keras.layers.Concatenate(name=POOLED)([average, highest])


def _generalised_mean(feature_map: Any) -> Any:
    """(mean of x^p)^(1/p), between mean (p = 1) and maximum (p → ∞).

    Radenović, Tolias & Chum 2018, eq. 3, with p fixed at the value they start from: a p that is
    learnt would need a layer of our own in the saved file. In float32 whatever the policy: cubes
    leave float16's range.
    """
    import keras

    x = keras.ops.maximum(keras.ops.cast(feature_map, "float32"), _GEM_FLOOR)
    cubes = keras.ops.mean(keras.ops.power(x, _GEM_POWER), axis=(1, 2))
    mean = keras.ops.power(cubes, 1 / _GEM_POWER)
    return keras.layers.Identity(dtype="float32", name=POOLED)(mean)


POOLINGS = {"avg": _average, "avg_max": _average_and_max, "gem": _generalised_mean}
