"""Views inside the served model against views made by numpy."""

import logging

import keras
import numpy as np
import pytest
import tensorflow as tf

from src.data.batches import apply_view
from src.model import inference
from src.model.classifier import build_classifier
from src.model.inference import averaged_over_views, predict_outputs, view_logits
from tests.model.support import SMALL, random_patches

pytestmark = pytest.mark.tensorflow


@pytest.fixture(scope="module")
def model():
    """A classifier whose logit depends on where things are."""
    classifier = build_classifier(SMALL)
    kernel = np.random.default_rng(0).normal(size=(2048, 1)).astype(np.float32)
    classifier.get_layer("logit").set_weights([kernel, np.array([0.5], np.float32)])
    return classifier


def test_folded_model_is_the_mean_over_the_views_and_survives_saving(model, tmp_path):
    """A view left out or doubled, patches and views mixed up, or what safe mode won't load."""
    patches = random_patches(5)
    by_view = np.stack(
        [model(np.ascontiguousarray(apply_view(patches, v)))[:, 0] for v in range(8)]
    )
    assert len(np.unique(by_view[:, 0].round(4))) > 1
    averaged_over_views(model).save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras", safe_mode=True)
    np.testing.assert_allclose(loaded(patches)[:, 0], by_view.mean(axis=0), rtol=1e-4, atol=1e-5)
    scored = predict_outputs(
        view_logits(model), patches, np.arange(5), batch_size=2, log=logging.getLogger("test")
    )
    np.testing.assert_allclose(scored.T, by_view, rtol=1e-4, atol=1e-5)


def test_views_take_no_more_memory_than_a_batch(model, monkeypatch):
    """Catches 8 times the activations: a batch that fits would no longer with views."""
    given, constant = [], tf.constant

    def counted(part):
        given.append(len(part))
        return constant(part)

    averaged = averaged_over_views(model)
    forward, patches = inference.forward_pass(averaged), random_patches(9)
    monkeypatch.setattr(tf, "constant", counted)
    answers = forward(patches)
    assert given == [2, 1, 1, 1, 1, 1, 1, 1]
    np.testing.assert_allclose(answers, averaged(patches), rtol=1e-4, atol=1e-5)
    given.clear()
    inference.forward_pass(model)(patches)
    assert given == [9]
