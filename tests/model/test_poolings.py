"""Poolings by one contract: what every entry of POOLINGS makes of a feature map."""

from typing import get_args

import keras
import numpy as np
import pytest
import tensorflow as tf

from src.model.classifier import POOLED, POOLINGS
from src.params import ModelParams

pytestmark = pytest.mark.tensorflow

N_CHANNELS = 5


def _pooling(name: str):
    feature_map = keras.Input((3, 4, N_CHANNELS))
    return keras.Model(feature_map, POOLINGS[name](feature_map))


def _feature_map() -> np.ndarray:
    """(2, 3, 4, 5) ≥ 0, as after a ReLU: about half are 0."""
    values = np.random.default_rng(0).normal(size=(2, 3, 4, N_CHANNELS))
    return np.maximum(values, 0).astype(np.float32)


def _shuffled(feature_map: np.ndarray) -> np.ndarray:
    flat = feature_map.reshape(2, 12, N_CHANNELS)
    order = np.random.default_rng(1).permutation(12)
    return flat[:, order].reshape(feature_map.shape)


@pytest.mark.parametrize("name", POOLINGS)
def test_contract(name, tmp_path):
    """Every pooling forgets where, keeps the scale of a constant map, and is saved without us."""
    model, feature_map = _pooling(name), _feature_map()
    pooled = model(feature_map).numpy()
    assert pooled.shape[1] % N_CHANNELS == 0
    assert pooled.dtype == np.float32
    np.testing.assert_allclose(model(_shuffled(feature_map)), pooled, rtol=1e-5)
    np.testing.assert_allclose(model(np.full_like(feature_map, 2.5)), 2.5, rtol=1e-5)
    lowest, highest = feature_map.mean(axis=(1, 2)), feature_map.max(axis=(1, 2))
    for part in np.split(pooled, pooled.shape[1] // N_CHANNELS, axis=1):
        assert (part >= lowest - 1e-6).all()
        assert (part <= highest + 1e-6).all()
    assert model.get_layer(POOLED).output.shape == model.output.shape  # where depth 0 cuts
    model.save(tmp_path / "pooling.keras")
    loaded = keras.saving.load_model(tmp_path / "pooling.keras", safe_mode=True)
    np.testing.assert_array_equal(loaded(feature_map), pooled)


def test_every_pooling_of_params_has_an_entry():
    """Catches a pooling that params.yaml accepts and the classifier doesn't know."""
    assert set(get_args(ModelParams.model_fields["pooling"].annotation)) == set(POOLINGS)


def test_generalised_mean_by_hand():
    """Catches another power: the cube root of (1 + 8 + 27 + 0) / 4 is 2.080."""
    feature_map = keras.Input((2, 2, 1))
    model = keras.Model(feature_map, POOLINGS["gem"](feature_map))
    pooled = model(np.array([1, 2, 3, 0], np.float32).reshape(1, 2, 2, 1))
    assert pooled.numpy().item() == pytest.approx(9 ** (1 / 3))


def test_gradient_of_a_dead_channel_is_finite():
    """Catches the root's infinite slope at 0, which turns the whole network into NaN."""
    model = _pooling("gem")
    dead = tf.zeros((1, 3, 4, N_CHANNELS))
    with tf.GradientTape() as tape:
        tape.watch(dead)
        pooled = tf.reduce_sum(model(dead))
    assert np.isfinite(tape.gradient(pooled, dead)).all()
