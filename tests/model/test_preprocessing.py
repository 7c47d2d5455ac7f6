"""Input sizes and centre crops of the recipe, against the same done apart."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from src.model.classifier import IMAGENET_MEAN_BGR, build_classifier, patch_input, preprocess
from tests.model.support import SMALL, random_patches

pytestmark = pytest.mark.tensorflow


@pytest.mark.parametrize("centre_crop", [None, 64, 48])
@pytest.mark.parametrize("input_size", [96, 128, 192, 224])
def test_crop_and_resize(centre_crop, input_size):
    """Catches a size that isn't reached, and a crop after the resize in place of before it."""
    params = SMALL.model_copy(update={"input_size": input_size, "centre_crop": centre_crop})
    inputs = patch_input()
    model = keras.Model(inputs, preprocess(inputs, params))
    assert model.output.shape == (None, input_size, input_size, 3)
    patches = random_patches(1)
    margin = 0 if centre_crop is None else (96 - centre_crop) // 2
    kept = patches[:, margin : 96 - margin, margin : 96 - margin].astype(np.float32)
    resized = tf.image.resize(kept, (input_size, input_size)).numpy()
    expected = resized[..., ::-1] - np.array(IMAGENET_MEAN_BGR, np.float32)
    np.testing.assert_allclose(model(patches), expected, atol=1e-3)


def test_a_large_classifier_is_built():
    """Catches a pooling or backbone tied to one size; built only, nothing is computed."""
    params = SMALL.model_copy(update={"input_size": 224, "centre_crop": 48, "pooling": "gem"})
    model = build_classifier(params)
    assert model.get_layer("conv5_block3_out").output.shape == (None, 7, 7, 2048)
    assert model.get_layer("pooled").output.shape == (None, 2048)
