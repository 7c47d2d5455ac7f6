"""Grad-CAM's gradient against differences, and maps placed where the patch was seen."""

import keras
import numpy as np
import pytest

from src.model.classifier import FEATURE_SCALE, build_classifier
from src.model.gradcam import (
    centre_area,
    centre_share,
    feature_gradients,
    gradcam,
    on_patch,
    signed_evidence,
    visible_px,
)


def _only(row, column, size=3):
    maps = np.zeros((1, size, size))
    maps[0, row, column] = 2.0
    return maps


def test_share_inside_of_a_whole_patch():
    """3 × 3 cells of 32 px: the middle cell is the centre square."""
    assert centre_share(_only(1, 1), seen_px=96) == 1
    assert centre_share(_only(0, 1), seen_px=96) == 0
    assert centre_share(np.ones((1, 3, 3)), seen_px=96) == pytest.approx(centre_area(96))
    assert centre_area(96) == pytest.approx(1 / 9)


def test_share_inside_of_a_centre_crop():
    """The square is a quarter of 64 px, and cuts cells: taken for 96 px it would be 1/9."""
    assert centre_share(np.ones((1, 3, 3)), seen_px=64) == pytest.approx(1 / 4)
    # cells of 21.3 px from 0: the square from 16 to 48 holds 5.3 px of the first, all the second
    assert centre_share(_only(0, 1), seen_px=64) == pytest.approx(1 / 4)
    assert centre_share(_only(1, 1), seen_px=64) == 1


def test_map_without_evidence_has_no_share():
    """0 would read as evidence outside the centre."""
    assert np.isnan(centre_share(np.zeros((1, 3, 3)), seen_px=96)).all()
    assert (on_patch(np.zeros((1, 3, 3)), seen_px=96) == 0).all()


def test_map_lies_where_the_model_looked():
    """Stretched over the whole patch, a cropped map would point beside its place."""
    placed = on_patch(_only(0, 2), seen_px=64)[0]
    assert placed.shape == (96, 96)
    assert placed[:16].max() == placed[:, 80:].max() == 0
    row, column = np.unravel_index(placed.argmax(), placed.shape)
    assert row in range(16, 28)
    assert column in range(68, 80)
    assert placed.max() == 1


@pytest.fixture(scope="module")
def tiny():
    """Convolution, then a head that is not linear in the feature map; sees the centre 64 px."""
    keras.utils.set_random_seed(0)
    patches = keras.Input((96, 96, 3), dtype="uint8")
    x = keras.layers.Rescaling(1 / 255)(patches)
    x = keras.layers.Cropping2D(16, name="centre_crop")(x)
    x = keras.layers.Conv2D(4, 16, strides=16, activation="tanh", name="features")(x)
    hidden = keras.layers.Dense(5, activation="tanh")(keras.layers.Flatten()(x))
    return keras.Model(patches, keras.layers.Dense(1)(hidden))


@pytest.mark.tensorflow
def test_gradient_equals_differences(tiny):
    """A gradient of another tensor, of the probability, or mixed up between patches."""
    patches = np.random.default_rng(0).integers(0, 256, (3, 96, 96, 3), dtype=np.uint8)
    for_tumour = np.array([True, False, True])
    features, gradients = feature_gradients(tiny, patches, for_tumour)
    assert features.shape == (3, 4, 4, 4)
    tail = keras.Model(tiny.get_layer("features").output, tiny.output)
    step = 1e-2
    for patch, place in ((0, (0, 0, 0)), (1, (3, 1, 2)), (2, (2, 2, 3))):
        moved = np.repeat(features[patch : patch + 1], 2, axis=0)
        moved[(0, *place)] += step
        moved[(1, *place)] -= step
        above, below = tail(moved, training=False).numpy()[:, 0]
        expected = (above - below) / (2 * step) * (1 if for_tumour[patch] else -1)
        assert gradients[(patch, *place)] == pytest.approx(expected, rel=0.02, abs=1e-4)
    weights = gradients.mean(axis=(1, 2))
    expected_map = np.maximum(np.einsum("nhwc,nc->nhw", features, weights), 0)
    np.testing.assert_allclose(gradcam(tiny, patches, for_tumour), expected_map, rtol=1e-4)
    assert visible_px(tiny) == 64


@pytest.mark.tensorflow
def test_classifier_is_explained_at_its_last_convolution():
    """The preprocessed input or the pooled features in place of the last feature map."""
    from tests.model.support import SMALL, random_patches

    model = build_classifier(SMALL.model_copy(update={"centre_crop": 64, "input_size": 64}))
    model.get_layer("logit").set_weights([np.ones((2048, 1), np.float32), np.zeros(1)])
    maps = gradcam(model, random_patches(2), np.array([True, True]))
    assert maps.shape == (2, 2, 2)
    assert (maps > 0).all()
    assert visible_px(model) == 64


@pytest.mark.tensorflow
def test_signed_evidence_adds_up_to_the_logit():
    """Channels counted from 0: what standardising subtracts would be missing from the map."""
    from tests.model.support import SMALL, random_patches

    model = build_classifier(SMALL.model_copy(update={"input_size": 64}))
    rng = np.random.default_rng(1)
    mean, variance = rng.random(2048), rng.random(2048) + 0.5
    model.get_layer(FEATURE_SCALE).set_weights([mean, variance])
    model.get_layer("logit").set_weights([rng.normal(size=(2048, 1)), np.array([3.0])])
    patches = random_patches(3)
    evidence = signed_evidence(model, patches, np.array([True, True, False])).sum(axis=(1, 2))
    logits = model(patches, training=False).numpy()[:, 0] - 3.0
    np.testing.assert_allclose(evidence, logits * [1, 1, -1], rtol=1e-3)
