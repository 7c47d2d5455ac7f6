"""Random colours for patches in training: stain, brightness and contrast.

What a patch shows stays where it is, so its label stays true. Flips and rotations, which stay true
as well, are views (``src.data.batches``): they need no pixels to be drawn anew.

A new augmentation is one entry of :data:`AUGMENTATIONS` and its strength in ``src.params``; the
contract test in ``tests/data/test_augmentation.py`` covers every entry.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops, random
from numpy.typing import NDArray

from src.data.measurements import EOSIN, HAEMATOXYLIN
from src.params import AugmentParams

Transform = Callable[[Any, Any], Any]
"""Pixels (n, h, w, 3) float32 in 0 … 255 and a Keras SeedGenerator → pixels, not clipped yet."""

DAB = (0.268, 0.570, 0.776)  # Ruifrok & Johnston 2001, table 1
_WHITE = 256.0  # of value + 1, as in src.data.measurements


def build_augmentation(params: AugmentParams | None, *, seed: int) -> keras.Model | None:
    """uint8 (n, h, w, 3) → uint8 of that shape, in new colours where ``training=True``.

    Each patch has its own; another call gives others. With ``training=False`` the patches come back
    as they are. The random state is in the model's ``variables`` (one per layer, int64 or uint32,
    shape (2,)): equal state, equal numbers. None where ``params`` is None.
    """
    if params is None:
        return None
    strengths = {name: getattr(params, name) for name in AUGMENTATIONS}
    return keras.Sequential(
        [
            keras.Input((None, None, 3), dtype="uint8"),
            *(
                RandomPerPatch(AUGMENTATIONS[name](strength), seed=seed + offset, name=name)
                for offset, (name, strength) in enumerate(strengths.items())
                if strength
            ),
        ],
        name="augmentation",
    )


class RandomPerPatch(keras.layers.Layer):  # type: ignore[misc]  # keras carries no types
    """One transform as a layer: random in training, nothing otherwise.

    Takes and gives (n, h, w, 3) of uint8, rounded, or of a float type, in 0 … 255.
    """

    def __init__(self, transform: Transform, *, seed: int, name: str) -> None:
        super().__init__(name=name, dtype="float32", autocast=False, trainable=False)
        self.transform = transform
        self.seeds = random.SeedGenerator(seed)

    def call(self, patches: Any, training: bool = False) -> Any:
        if not training:
            return patches
        pixels = self.transform(ops.cast(patches, "float32"), self.seeds)
        pixels = ops.clip(pixels, 0.0, 255.0)
        if keras.backend.is_int_dtype(patches.dtype):
            pixels = ops.round(pixels)
        return ops.cast(pixels, patches.dtype)

    def compute_output_shape(self, shape: Any) -> Any:
        return shape


def _stain(strength: float) -> Transform:
    """Scale and shift the density of haematoxylin, eosin and DAB (Tellez et al. 2018, HED jitter).

    s ← a · s + b with a in 1 ± strength and b in ± strength, uniform, for each stain of each patch;
    densities as in ``src.data.measurements``. Unmixing, change and mixing are linear, so they
    are one 3 × 3 matrix a patch.
    """
    mix = stain_vectors()
    unmix = np.linalg.inv(mix).astype(np.float32)

    def transform(pixels: Any, seeds: Any) -> Any:
        n, height, width, _ = ops.shape(pixels)
        scales = random.uniform((n, 1, 3), 1 - strength, 1 + strength, "float32", seeds)
        shifts = random.uniform((n, 1, 3), -strength, strength, "float32", seeds)
        matrices = ops.matmul(unmix * scales, mix)
        flat = ops.reshape(pixels, (n, height * width, 3))
        density = -ops.log((flat + 1) / _WHITE)
        changed = ops.matmul(density, matrices) + ops.matmul(shifts, mix) * np.log(10.0)
        return ops.reshape(_WHITE * ops.exp(-changed) - 1, (n, height, width, 3))

    return transform


def _brightness(strength: float) -> Transform:
    """Multiply each patch by a factor in 1 ± strength, uniform."""

    def transform(pixels: Any, seeds: Any) -> Any:
        return pixels * _factors(pixels, strength, seeds)

    return transform


def _contrast(strength: float) -> Transform:
    """Multiply each channel's distance to its mean over the patch by a factor in 1 ± strength."""

    def transform(pixels: Any, seeds: Any) -> Any:
        mean = ops.mean(pixels, axis=(1, 2), keepdims=True)
        return mean + (pixels - mean) * _factors(pixels, strength, seeds)

    return transform


AUGMENTATIONS: dict[str, Callable[[float], Transform]] = {
    "stain": _stain,
    "brightness": _brightness,
    "contrast": _contrast,
}


def stain_vectors() -> NDArray[np.float32]:
    """(3, 3): densities of the stains, multiplied by it from the left, are those of R, G and B.

    Rows of length 1: haematoxylin, eosin, DAB.
    """
    vectors = np.array([HAEMATOXYLIN, EOSIN, DAB])
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors.astype(np.float32)


def _factors(pixels: Any, strength: float, seeds: Any) -> Any:
    shape = (ops.shape(pixels)[0], 1, 1, 1)
    return random.uniform(shape, 1 - strength, 1 + strength, "float32", seeds)
