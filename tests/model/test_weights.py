"""Initial weights: asked for is what is loaded, or one line says why not."""

import keras
import numpy as np
import pytest

from src.model.classifier import build_classifier
from src.model.weights import WeightsError, load_initial_weights
from src.system.durable import sha256_file
from tests.model.support import SMALL

pytestmark = pytest.mark.tensorflow


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    file = tmp_path_factory.mktemp("weights") / "resnet50.weights.h5"
    keras.applications.ResNet50(include_top=False, weights=None).save_weights(file)
    return file


def _build():
    return build_classifier(SMALL)


def test_a_pinned_file_fills_the_backbone(file):
    """Catches weights matched in the wrong order, or not at all."""
    expected = keras.applications.ResNet50(include_top=False, weights=None)
    expected.load_weights(file)
    model = _build()
    pinned = {"weights": str(file), "weights_sha256": sha256_file(file)}
    load_initial_weights(model, SMALL.model_copy(update=pinned))
    for name in ("conv1_conv", "conv3_block2_2_conv", "conv5_block3_3_bn"):
        for got, wanted in zip(
            model.get_layer(name).get_weights(), expected.get_layer(name).get_weights(), strict=True
        ):
            np.testing.assert_array_equal(got, wanted)


def test_an_unpinned_file_is_not_opened(file):
    """Catches HDF5 from anywhere being parsed."""
    with pytest.raises(WeightsError, match=r"set model\.weights_sha256"):
        load_initial_weights(_build(), SMALL.model_copy(update={"weights": str(file)}))


def test_a_file_with_other_bytes_than_pinned_is_refused(file):
    """Catches a pin that is not compared."""
    pinned = {"weights": str(file), "weights_sha256": "0" * 64}
    with pytest.raises(WeightsError, match="sha256 mismatch"):
        load_initial_weights(_build(), SMALL.model_copy(update=pinned))


def test_a_missing_file_is_named():
    """Catches a silent fallback to random weights."""
    with pytest.raises(WeightsError, match="weights file not found"):
        load_initial_weights(_build(), SMALL.model_copy(update={"weights": "absent.h5"}))


def test_imagenet_without_network_names_both_ways_out(monkeypatch):
    """Catches a traceback, or random weights in place of ImageNet's."""

    def unreachable(**_):
        raise OSError("Name or service not known")

    monkeypatch.setattr(keras.utils, "get_file", unreachable)
    with pytest.raises(WeightsError, match=r"set model\.weights to its path.*weights: none"):
        load_initial_weights(_build(), SMALL.model_copy(update={"weights": "imagenet"}))
