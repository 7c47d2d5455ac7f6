"""Mixed precision leaves no trace in what is saved, and equal models have equal files."""

import keras
import numpy as np
import pytest

from src.model.classifier import build_classifier
from src.model.inference import save_model
from src.model.step import bfloat16_layers, uses_bfloat16
from tests.model.support import SMALL, random_patches

pytestmark = pytest.mark.tensorflow


@pytest.fixture
def model():
    return _built()


def _built():
    keras.backend.clear_session()  # as a process of its own would start
    keras.config.set_dtype_policy(keras.DTypePolicy("float32"))
    keras.utils.set_random_seed(1)
    model = build_classifier(SMALL.model_copy(update={"backbone": "resnet_tiny"}))
    model.get_layer("logit").set_weights([np.ones((256, 1)), np.zeros(1)])
    return model


def test_bfloat16_computes_roughly_the_same_and_leaves_float32_behind(model):
    """Catches a policy that stays on the layers, and one that doesn't reach them."""
    patches = random_patches(4)
    exact = model(patches, training=False).numpy()
    with bfloat16_layers(model):
        rough = model(patches, training=False).numpy()
    assert rough.dtype == np.float32
    assert not np.array_equal(rough, exact)
    np.testing.assert_allclose(rough, exact, rtol=0.05)
    np.testing.assert_array_equal(model(patches, training=False), exact)
    assert {layer.dtype_policy.name for layer in model.layers if layer.weights} == {"float32"}


def test_auto_is_float32_without_a_gpu():
    """Catches bfloat16 on a CPU, where it is slow and nobody asked for it."""
    assert not uses_bfloat16("auto")
    assert uses_bfloat16("on")


def test_equal_models_have_equal_files(model, tmp_path):
    """Catches Keras' dates and memory addresses: every training would be a new model to DVC."""
    for name, equal in (("a.keras", model), ("b.keras", _built())):
        save_model(equal, tmp_path / name)
    files = [(tmp_path / name).read_bytes() for name in ("a.keras", "b.keras")]
    assert files[0] == files[1]
    loaded = keras.saving.load_model(tmp_path / "a.keras", compile=False, safe_mode=True)
    patches = random_patches(2)
    np.testing.assert_array_equal(loaded(patches, training=False), model(patches, training=False))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.keras", "b.keras"]
