"""Augmentation by one contract, and each entry's change by an independent route."""

import numpy as np
import pytest

from src.data.augmentation import (
    AUGMENTATIONS,
    DAB,
    RandomPerPatch,
    build_augmentation,
)
from src.data.measurements import EOSIN, HAEMATOXYLIN
from src.params import AugmentParams

pytestmark = pytest.mark.tensorflow

STRENGTH = 0.2
N = 3


def _patches(*, n: int = N, side: int = 8) -> np.ndarray:
    """Colours of stained tissue: (n, side, side, 3) uint8."""
    rng = np.random.default_rng(0)
    return rng.integers((90, 40, 110), (250, 240, 250), (n, side, side, 3)).astype(np.uint8)


def _layer(name: str, *, seed: int = 1):
    return RandomPerPatch(AUGMENTATIONS[name](STRENGTH), seed=seed, name=name)


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_contract(name, dtype):
    """Colours change, patch by patch, within the range; places don't; inference changes nothing."""
    patches = _patches().astype(dtype)
    patches[:, 0, 0], patches[:, 0, 1] = 255, 0  # both ends of the range
    layer = _layer(name)
    np.testing.assert_array_equal(layer(patches, training=False), patches)
    np.testing.assert_array_equal(layer(patches), patches)
    start = [variable.numpy() for variable in layer.variables]
    assert len(start) == 1

    changed = layer(patches, training=True).numpy()
    assert changed.dtype == dtype
    assert changed.shape == patches.shape
    assert changed.min() >= 0
    assert changed.max() <= 255
    assert not np.array_equal(changed, patches)
    assert not np.array_equal(layer(patches, training=True), changed)  # the next epoch's differ

    def again(values: np.ndarray) -> np.ndarray:
        for variable, value in zip(layer.variables, start, strict=True):
            variable.assign(value)
        return layer(values, training=True).numpy()

    np.testing.assert_array_equal(again(patches), changed)
    # moving pixels and changing colours commute: nothing is mixed across places
    order = np.random.default_rng(1).permutation(64)
    moved = patches.reshape(N, 64, 3)[:, order].reshape(patches.shape)
    expected = changed.reshape(N, 64, 3)[:, order].reshape(patches.shape)
    tolerance = 1 if dtype == "uint8" else 1e-3  # sums in another order may round the other way
    np.testing.assert_allclose(again(moved).astype(float), expected.astype(float), atol=tolerance)
    # each of three equal patches gets colours of its own
    three = again(np.repeat(patches[:1], N, axis=0))
    assert len({patch.tobytes() for patch in three}) == N


def test_every_strength_of_params_has_an_entry():
    """Catches a strength that params.yaml accepts and nothing reads."""
    assert list(AugmentParams.model_fields) == list(AUGMENTATIONS)


def test_stain_changes_each_stain_by_one_line():
    """Catches natural for decimal logarithms, and unmixing by the transposed matrix.

    Unmixed apart, by least squares, each stain of each patch must be a · s + b of what it was.
    """
    patches = _patches(n=40).astype(np.float32)
    changed = _layer("stain")(patches, training=True).numpy()
    vectors = np.array([HAEMATOXYLIN, EOSIN, DAB])
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)

    def stains(values: np.ndarray) -> np.ndarray:
        density = -np.log10((values.reshape(-1, 3).astype(float) + 1) / 256)
        return np.linalg.lstsq(vectors.T, density.T)[0].T

    slopes, offsets = [], []
    for before, after in zip(patches, changed, strict=True):
        inside = ((after > 0) & (after < 255)).all(axis=-1).ravel()
        for stain in range(3):
            x, y = stains(before)[inside, stain], stains(after)[inside, stain]
            slope, offset = np.polyfit(x, y, 1)
            np.testing.assert_allclose(slope * x + offset, y, atol=1e-3)
            slopes.append(slope)
            offsets.append(offset)
    for values, centre in ((slopes, 1.0), (offsets, 0.0)):
        assert max(np.abs(np.array(values) - centre)) <= STRENGTH + 1e-3
        assert min(values) < centre - 0.8 * STRENGTH
        assert max(values) > centre + 0.8 * STRENGTH


@pytest.mark.parametrize("name", ["brightness", "contrast"])
def test_factors_fill_their_range(name):
    """Catches a factor outside 1 ± strength, or one that hardly varies; by hand on two greys."""
    patches = np.zeros((60, 1, 2, 3), np.float32)
    patches[:, :, 0], patches[:, :, 1] = 80, 120  # mean 100, distance 20
    changed = _layer(name)(patches, training=True).numpy()
    if name == "brightness":
        factors = changed / patches
    else:
        np.testing.assert_allclose(changed.mean(axis=(1, 2)), 100, rtol=1e-5)
        factors = (changed - 100) / (patches - 100)
    of_patch = np.broadcast_to(factors[:, :1, :1, :1], factors.shape)
    np.testing.assert_allclose(factors, of_patch, rtol=1e-5)
    assert 0.8 - 1e-4 <= factors.min() < 0.85
    assert 1.15 < factors.max() <= 1.2 + 1e-4


def test_the_whole_augmentation_in_a_graph():
    """Catches a model that only works eagerly, of other patches, or whose state can't be saved."""
    import tensorflow as tf

    params = AugmentParams(stain=0.05, brightness=0.1, contrast=0.0)
    model = build_augmentation(params, seed=1)
    assert [layer.name for layer in model.layers] == ["stain", "brightness"]
    compiled = tf.function(lambda patches: model(patches, training=True))
    patches = _patches(side=96)
    start = [variable.numpy() for variable in model.variables]
    assert len(start) == 2
    first = compiled(patches).numpy()
    assert first.dtype == np.uint8
    assert first.shape == patches.shape
    assert not np.array_equal(compiled(patches), first)
    for variable, value in zip(model.variables, start, strict=True):
        variable.assign(value)
    np.testing.assert_array_equal(compiled(patches), first)
    np.testing.assert_array_equal(model(patches, training=False), patches)
