"""Scoring patches: one graph, in full float32, whoever asks; and no number is no decision."""

import logging
from dataclasses import asdict, replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from src import deciding, evaluate, paths, predict, prediction, promote, register, scoring, serving
from src.evaluation.baseline import N_FEATURES
from src.params import load_params
from tests.evaluated import labelled_patches
from tests.model.support import SMALL, random_patches

VERSION = SimpleNamespace(name="m", version=2, contract=None, model=None)
PIXELS = random_patches(8)
NAN_OF_TWO = np.array([0.5, np.nan], np.float32)


def test_nan_is_refused_rather_than_called_normal(monkeypatch):
    """NaN >= threshold is False: a broken model would clear every patch."""
    monkeypatch.setattr(scoring, "check_contract", lambda *_: None)
    monkeypatch.setattr(scoring, "forward_pass", lambda _: lambda _: NAN_OF_TWO[:, None])
    version = SimpleNamespace(**vars(VERSION), operating_point={"threshold": 0.4})
    with pytest.raises(
        scoring.ScoreError, match="version 2 of m gives no finite number for 1 of 2"
    ):
        scoring.Scorer(version).probabilities(np.zeros((2, 96, 96, 3), np.uint8))


def test_nan_judges_no_version(monkeypatch):
    """Catches a plain ValueError, and so a traceback, out of register and promote."""
    patches = labelled_patches(["a", "b"], [0, 1])
    monkeypatch.setattr("src.data.dataset.load_split", lambda _: patches)
    monkeypatch.setattr(
        "src.model.inference.predict_outputs", lambda *_, **__: NAN_OF_TWO.astype(np.float64)
    )
    with pytest.raises(scoring.ScoreError, match="run: dvc repro --force finetune"):
        deciding.score(VERSION, pd.Series(["a", "b"]), 8, None)


class Started(Exception):
    """A stage has started TensorFlow and goes on to its work."""


def _begin_promoting() -> None:
    promote.judge(load_params(), 1, logging.getLogger("test"))


def _begin_rolling_back() -> None:
    promote.check_unchanged(load_params(), 1)


def _begin_predicting() -> None:
    predict.predict_test(load_params(), logging.getLogger("test"))


def _begin_predicting_input() -> None:
    prediction.load_champion("m", load_params(), logging.getLogger("test"))


@pytest.mark.tensorflow
@pytest.mark.parametrize(
    "begin",
    [
        register.main,
        _begin_promoting,
        _begin_rolling_back,
        _begin_predicting,
        _begin_predicting_input,
        lambda: serving._load_pyfunc("folder"),
    ],
    ids=["register", "promote", "rollback", "predict", "predict --input", "serve"],
)
def test_scores_are_made_without_tf32(begin, monkeypatch):
    """Catches products on 10 bits of mantissa, which differ from graph to graph."""
    import tensorflow as tf

    def started(*_, **__):
        raise Started

    for name in (
        "src.model.inference.load_classifier",
        "src.tracking.aliases.alias_changes",
        "src.tracking.registry.load_version",
        "src.tracking.served.load_served",
        "src.promote.standing_champion",
        "src.predict.load_chosen",
    ):
        monkeypatch.setattr(name, started)
    monkeypatch.setattr(register, "check_trained_here", lambda *_: None)
    monkeypatch.setattr(promote, "_tags", lambda *_: {})
    monkeypatch.setattr(predict, "read_json", lambda _: {"no_submission": False})
    monkeypatch.setattr(predict, "check_chosen", lambda _: None)
    monkeypatch.setattr("src.tracking.registry.champion_version", lambda _: 1)
    monkeypatch.setattr("src.tracking.registry.verify_version", lambda *_: None)
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
    from src.model.final import write_final
    from src.model.inference import load_classifier
    from src.model.tta import logits_by_view

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
    assert np.ptp(expected) > 0.5
    monkeypatch.setattr(paths, "FINAL_MODEL", tmp_path / "final")
    monkeypatch.setattr("src.data.dataset.load_split", lambda _: split)
    point = evaluate.operating_point_on_val(predictions, chosen)
    write_final(paths.FINAL_MODEL, classifier, asdict(point), {"ids": [], "sha256": []})
    final = load_classifier(paths.FINAL_MODEL)
    version = SimpleNamespace(
        **{**vars(VERSION), "model": final}, operating_point={"threshold": point.threshold}
    )
    registered = deciding.score(version, holdout["id"], 8, log)
    served = scoring.Scorer(version).probabilities(split.pixels)
    golden = deciding.logits_of(final, split.pixels)
    np.testing.assert_allclose(registered, expected, rtol=0, atol=1e-4)
    np.testing.assert_allclose(served, expected, rtol=0, atol=1e-4)
    np.testing.assert_allclose(golden, np.log(expected / (1 - expected)), rtol=0, atol=1e-3)
