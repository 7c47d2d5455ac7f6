"""The classifier against the same computation done apart, and what is frozen in it."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from src.model.backbone import BACKBONES, block_of
from src.model.classifier import build_classifier, cut, unfreeze
from src.model.weights import weights_sha256
from tests.model.support import SMALL, random_patches

pytestmark = pytest.mark.tensorflow


@pytest.fixture(scope="module")
def model():
    return build_classifier(SMALL)


def _resized(patches: np.ndarray) -> np.ndarray:
    return tf.image.resize(patches.astype("float32"), (32, 32)).numpy()


def test_model_equals_preprocessing_backbone_and_head_done_apart(model):
    """Catches double, missing or misordered scaling."""
    patches = random_patches(3)
    backbone = keras.applications.ResNet50(
        include_top=False, weights=None, input_shape=(32, 32, 3), pooling="avg"
    )
    for layer in backbone.layers:
        if layer.weights:
            layer.set_weights(model.get_layer(layer.name).get_weights())
    kernel = np.linspace(-1, 1, 2048, dtype=np.float32)[:, None]
    model.get_layer("logit").set_weights([kernel, np.array([0.5], np.float32)])
    prepared = keras.applications.resnet50.preprocess_input(_resized(patches))
    features = backbone(prepared, training=False).numpy()
    expected = features / np.sqrt(1 + 1e-3) @ kernel + 0.5
    np.testing.assert_allclose(model(patches, training=False).numpy(), expected, rtol=1e-4)


@pytest.mark.parametrize("size", [{"centre_crop": 64}, {"input_size": 64}, {}])
def test_calling_without_a_training_flag_is_inference(size):
    """Catches Keras' resizing layers, which put BatchNorm into training mode unasked."""
    model = build_classifier(SMALL.model_copy(update=size))
    patches = random_patches(2)
    before = [w.numpy().copy() for w in model.weights]
    np.testing.assert_array_equal(model(patches), model(patches, training=False))
    for old, new in zip(before, model.weights, strict=True):
        np.testing.assert_array_equal(old, new.numpy())


def test_centre_crop_sees_the_centre_only():
    """Catches a crop that is off the labelled centre."""
    model = build_classifier(SMALL.model_copy(update={"centre_crop": 32}))
    model.get_layer("logit").set_weights([np.ones((2048, 1)), np.zeros(1)])
    patches = random_patches(1)
    outside = patches.copy()
    outside[:, :32] = 0
    outside[:, 64:] = 0
    outside[:, :, :32] = 0
    outside[:, :, 64:] = 0
    inside = patches.copy()
    inside[:, 32, 32] = 255 - inside[:, 32, 32]
    same, other = model(outside, training=False), model(inside, training=False)
    np.testing.assert_array_equal(same, model(patches, training=False))
    assert not np.array_equal(other, model(patches, training=False))


def test_saved_model_holds_stock_layers_only_and_gives_the_same_logits(model, tmp_path):
    """Catches a custom layer, which would need our code wherever the model is loaded."""
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras", safe_mode=True)
    assert {type(layer).__module__.split(".")[0] for layer in loaded.layers} == {"keras"}
    patches = random_patches(2)
    np.testing.assert_array_equal(loaded(patches, training=False), model(patches, training=False))


def _freed_blocks(model) -> set[str]:
    blocks = BACKBONES["resnet50"].blocks
    freed = {
        block_of(layer.name, blocks)
        for layer in model.layers
        if layer.trainable and layer.trainable_weights
    }
    return {blocks[index] for index in freed if index is not None}


@pytest.mark.parametrize(
    ("depth", "lowest", "n_blocks"),
    [(1, "conv5_block3", 1), (3, "conv5_block1", 3), (4, "conv4_block6", 4), (16, None, 16)],
)
def test_depth_counts_residual_blocks_from_the_top(model, depth, lowest, n_blocks):
    """Catches freezing by layer position, which cuts through blocks."""
    unfreeze(model, backbone="resnet50", depth=depth, batch_norm="train")
    freed = _freed_blocks(model)
    assert len(freed) == n_blocks
    assert lowest is None or min(freed) == lowest
    assert model.get_layer("conv1_conv").trainable == (depth == 16)


@pytest.mark.parametrize("batch_norm", ["frozen", "train"])
def test_depth_zero_frees_the_head_alone(model, batch_norm):
    """Catches layers[-0:], which frees everything."""
    unfreeze(model, backbone="resnet50", depth=0, batch_norm=batch_norm)
    assert [w.path for w in model.trainable_weights] == ["logit/kernel", "logit/bias"]


def test_frozen_batch_norm_keeps_scale_and_statistics(model):
    """Catches a BatchNorm mode that freezes its parameters but not its statistics."""
    unfreeze(model, backbone="resnet50", depth=1, batch_norm="frozen")
    names = {w.path.split("/")[-1] for w in model.trainable_weights}
    assert names == {"kernel", "bias"}
    before = model.get_layer("conv5_block3_1_bn").get_weights()
    model(random_patches(2), training=True)
    after = model.get_layer("conv5_block3_1_bn").get_weights()
    for old, new in zip(before, after, strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize("depth", range(17))
def test_trunk_then_tail_is_the_whole_model(model, depth):
    """Catches a cut that loses a shortcut."""
    patches = random_patches(2)
    trunk, tail = cut(model, backbone="resnet50", depth=depth)
    inputs = patches if trunk is None else trunk(patches, training=False)
    np.testing.assert_array_equal(tail(inputs, training=False), model(patches, training=False))
    assert (trunk is None) == (depth == 16)


def test_weights_digest_follows_the_values():
    """Catches a digest of file bytes, which differ for equal weights."""
    model = build_classifier(SMALL)
    first = weights_sha256(model)
    assert weights_sha256(model) == first
    model.get_layer("logit").bias.assign([1.0])
    assert weights_sha256(model) != first
