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


POOLINGS = {"avg": _average, "avg_max": _average_and_max}
