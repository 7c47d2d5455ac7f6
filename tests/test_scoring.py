"""Scoring patches: one graph, in full float32, whoever asks; and no number is no decision."""

import logging
from dataclasses import asdict, replace
from types import SimpleNamespace

import numpy as np
import pytest

from src import evaluate, paths, predict, promote, register, serve
from src.evaluation.baseline import N_FEATURES
from src.model import scorer
from src.model.final import CONTRACT, write_final
from src.model.tta import logits_by_view
from src.params import load_params
from src.tracking import registry
from tests.evaluated import labelled_patches
from tests.model.support import SMALL, random_patches

PIXELS = random_patches(8)


def test_nan_is_refused_rather_than_called_normal():
    """NaN >= threshold is False: a broken model would clear every patch."""
    with pytest.raises(scorer.ScoreError, match="version 2 of m gives no finite number for 1 of 2"):
        scorer.finite(np.array([0.5, np.nan]), "version 2 of m")


class Started(Exception):
    """A command has started TensorFlow and goes on to its work."""


@pytest.mark.tensorflow
@pytest.mark.parametrize(
    "begin",
    [
        register.main,
        lambda: promote.main(version=1),
        lambda: promote.main(rollback=True),
        predict.main,
        lambda: predict.main(input_="in", output=paths.ROOT / "new.csv"),
        lambda: serve._load_pyfunc("folder"),
    ],
    ids=["register", "promote", "rollback", "predict", "predict --input", "serve"],
)
def test_scores_are_made_without_tf32(begin, monkeypatch):
    """Catches products on 10 bits of mantissa, which differ from graph to graph."""
    import tensorflow as tf

    def started(*_, **__):
        raise Started

    version = SimpleNamespace(name="m", number=1, manifest_sha256="", verify=lambda: None)
    champion = SimpleNamespace(name="m", number=2, verify=lambda: None)
    for name in ("src.model.inference.load_classifier", "src.model.scorer.Scorer"):
        monkeypatch.setattr(name, started)
    for name in ("src.model.scorer.HoldoutScores", "src.tracking.registry.version_in"):
        monkeypatch.setattr(name, started)
    for module in (register, promote):
        monkeypatch.setattr(module, "read_holdout", started)
    monkeypatch.setattr(register, "check_trained_here", lambda *_: None)
    monkeypatch.setattr(registry, "champion_of", lambda _: champion)
    monkeypatch.setattr(registry, "find_version", lambda *_: version)
    monkeypatch.setattr(registry, "aliases", lambda _: {})
    monkeypatch.setattr("src.tracking.promotions.champion_before", lambda *_: version)
    said = {"no_submission": False, "digests": {}, "name": "m"}
    chosen = {"predict_with": {"role": "champion", "version": 1}}
    monkeypatch.setattr(predict, "read_json", lambda _: said | chosen)
    monkeypatch.setattr(predict, "check_chosen", lambda *_: None)
    monkeypatch.setattr(predict, "open_input", lambda _: None)
    tf.config.experimental.enable_tensor_float_32_execution(True)
    with pytest.raises(Started):
        begin()
    assert not tf.config.experimental.tensor_float_32_execution_enabled()


@pytest.fixture
def ten_bits(monkeypatch):
    """Convolutions round what they multiply to 10 bits of mantissa, as in TF32."""
    import keras
    import tensorflow as tf

    def rounded(x):
        bits = tf.bitcast(tf.convert_to_tensor(x), tf.uint32)
        half, kept = tf.constant(0x1000, tf.uint32), tf.constant(0xFFFFE000, tf.uint32)
        return tf.bitcast(tf.bitwise.bitwise_and(bits + half, kept), tf.float32)

    convolution = keras.layers.Conv2D.convolution_op
    monkeypatch.setattr(
        keras.layers.Conv2D,
        "convolution_op",
        lambda layer, x, kernel: convolution(layer, rounded(x), rounded(kernel)),
    )


@pytest.fixture(scope="module")
def classifier():
    """ResNet50 whose BatchNorm layers do something, and whose logits differ around 0."""
    import keras

    from src.model.classifier import build_classifier

    keras.utils.set_random_seed(1)
    model = build_classifier(SMALL)
    rng = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization) and layer.scale:
            gamma, variance = rng.uniform(0.5, 1.5, (2, layer.gamma.shape[0]))
            beta, mean = rng.normal(0, 0.1, (2, layer.gamma.shape[0]))
            layer.set_weights([gamma, beta, mean, variance])
    head = model.get_layer("logit")
    head.kernel.assign(rng.normal(0, 0.05, (2048, 1)))
    head.bias.assign([-np.median(model(PIXELS, training=False))])
    return model


@pytest.mark.tensorflow
@pytest.mark.parametrize("tta", [False, True])
def test_every_route_gives_the_scores_of_evaluate(tta, classifier, ten_bits, tmp_path, monkeypatch):  # noqa: ARG001
    """Catches a second graph of the same weights: BatchNorm apart here, folded there. In full
    float32 such graphs agree and hide it."""
    params = load_params()
    chosen = params.evaluate.model_copy(update={"tta": tta})
    runtime = params.runtime.model_copy(update={"inference_batch_size": 8})
    params = params.model_copy(update={"evaluate": chosen, "runtime": runtime})
    n, rng, log = len(PIXELS), np.random.default_rng(0), logging.getLogger("test")
    split = labelled_patches([f"{i:02d}" for i in range(n)], range(n), PIXELS)
    logits = logits_by_view(classifier, split, all_views=tta, batch_size=8, log=log)
    assert logits.shape == (8 if tta else 1, n)
    mean = logits.mean(axis=0)
    split = replace(split, labels=(mean + rng.normal(0, 1, n) > 0).astype(np.uint8))
    predictions = evaluate.predictions_of(
        split,
        (replace(split, split="val"), split),
        logits=[logits, logits],
        histograms=[rng.random((n, N_FEATURES), dtype=np.float32)] * 3,
        seed=1,
    )
    holdout = predictions[predictions["split"] == "holdout"]
    expected = holdout["probability"].to_numpy()
    assert np.ptp(expected) > 0.2
    monkeypatch.setattr(paths, "FINAL_MODEL", tmp_path / "final")
    monkeypatch.setattr(scorer, "load_split", lambda _: split)
    point = evaluate.operating_point_on_val(predictions, chosen)
    seen = {"ids": [], "sha256": [], "slides": []}
    write_final(paths.FINAL_MODEL, classifier, asdict(point), seen)
    version = SimpleNamespace(
        name="m",
        number=2,
        contract=CONTRACT,
        golden=(split.pixels, np.log(expected / (1 - expected))),
        model_file=paths.FINAL_MODEL / "model.keras",
        operating_point={"threshold": point.threshold},
    )
    scores = scorer.HoldoutScores(batch_size=8, log=log)
    registered = scores.probabilities(version, holdout["id"])
    served = scorer.Scorer(version).probabilities(split.pixels)
    np.testing.assert_allclose(registered, expected, rtol=0, atol=1e-4)
    np.testing.assert_allclose(served, expected, rtol=0, atol=1e-4)
    assert scores.golden_error(version) < 1e-3
