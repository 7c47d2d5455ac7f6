"""Small models and patches for the model room's tests."""

from typing import Any

import keras
import numpy as np

from src import paths
from src.data.batches import Batch
from src.data.dataset import LabelledPatches
from src.params import (
    FinetuneParams,
    ModelParams,
    Params,
    RuntimeParams,
    TrainParams,
    load_params,
)

SMALL = ModelParams(
    backbone="resnet50", weights="none", input_size=32, centre_crop=None, pooling="avg", dropout=0.2
)


def random_patches(n: int, *, seed: int = 0) -> np.ndarray:
    """(n, 96, 96, 3) uint8."""
    return np.random.default_rng(seed).integers(0, 256, (n, 96, 96, 3), dtype=np.uint8)


def labelled(pixels: np.ndarray, labels: list[int], *, split: str = "train") -> LabelledPatches:
    """Patches of which each is its own group."""
    n = len(labels)
    ids = np.array([f"{i:040x}" for i in range(n)])
    return LabelledPatches(split, ids, np.arange(n), np.array(labels, np.uint8), ids, pixels)


def train_params(**changes: Any) -> TrainParams:
    """The section train of the sample preset with ``changes``, validated."""
    return TrainParams.model_validate({**_sample().train.model_dump(), **changes})


def finetune_params(**changes: Any) -> FinetuneParams:
    """The section finetune of the sample preset with ``changes``, validated."""
    return FinetuneParams.model_validate({**_sample().finetune.model_dump(), **changes})


def runtime_params(**changes: Any) -> RuntimeParams:
    """The section runtime of the sample preset with ``changes``, validated."""
    return RuntimeParams.model_validate({**_sample().runtime.model_dump(), **changes})


def _sample() -> Params:
    return load_params(paths.ROOT / "presets" / "sample.yaml")


def small_tail() -> keras.Model:
    """Four dense layers named as ResNet50's stem, its top two blocks and the head: (n, 4) → logit.

    The same weights at every call.
    """
    keras.utils.set_random_seed(5)
    inputs = x = keras.Input((4,))
    for name in ("conv1_conv", "conv5_block2_1_conv", "conv5_block3_1_conv"):
        x = keras.layers.Dense(6, activation="tanh", name=name)(x)
    return keras.Model(inputs, keras.layers.Dense(1, name="logit")(x))


class ArrayInputs:
    """Features (views, n, …) that are already in memory."""

    def __init__(self, features: np.ndarray) -> None:
        self.features = features

    def prepare(self, views: np.ndarray) -> None:
        pass

    def __call__(self, batch: Batch) -> np.ndarray:
        return self.features[batch.views, batch.positions]
