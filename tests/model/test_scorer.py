"""Scoring patches: one graph, in full float32, whoever asks; and no number is no decision."""

import csv
import dataclasses
import json
import logging
from dataclasses import asdict, replace
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from src import evaluate, paths
from src.data.sources import open_input
from src.evaluation.baseline import N_FEATURES
from src.model import scorer
from src.model.final import CONTRACT, ContractError, check_contract, write_final
from src.model.inference import logits_by_view
from src.params import load_params
from tests.evaluated import labelled_patches
from tests.model.support import SMALL, random_patches

LOG = logging.getLogger("hcd.test")
PIXELS = random_patches(8)


class BrightnessScorer(scorer.Scorer):
    """Half the first byte of a patch in hundredths; keeps the sizes of its batches."""

    def __init__(self):
        self.threshold = 0.5
        self.sizes = []

    def probabilities(self, pixels):
        self.sizes.append(len(pixels))
        return pixels[:, 0, 0, 0] / 200


def folder_of(tmp_path, first_bytes):
    folder = tmp_path / "in"
    folder.mkdir()
    for i, value in enumerate(first_bytes):
        pixels = np.full((96, 96, 3), value, np.uint8)
        Image.fromarray(pixels).save(folder / f"p{i}.tif")
    return folder


def written(source, output, **changes):
    options = {"batch_size": 2, "skip_bad": False, "log": LOG} | changes
    by = options.pop("scorer", None) or BrightnessScorer()
    scorer.write_predictions(source, by, output, **options)
    return list(csv.reader(output.read_text().splitlines()))


def test_rows_are_id_probability_and_decision_at_the_threshold(tmp_path):
    """Both sides of the threshold, and on it: tumour."""
    source = open_input(folder_of(tmp_path, [99, 100, 101]))
    rows = written(source, tmp_path / "out.csv")
    assert rows == [
        ["id", "probability", "decision"],
        ["p0", "0.495", "normal"],
        ["p1", "0.5", "tumour"],
        ["p2", "0.505", "tumour"],
    ]


def test_no_more_than_a_batch_is_scored_at_once(tmp_path):
    """Catches all pixels read into memory first."""
    by = BrightnessScorer()
    written(open_input(folder_of(tmp_path, range(5))), tmp_path / "out.csv", scorer=by)
    assert by.sizes == [2, 2, 1]


def test_bad_files_are_all_named_and_nothing_is_written(tmp_path, caplog):
    """Catches a table that lacks rows, and a person who learns of one bad file a run."""
    folder = folder_of(tmp_path, range(5))
    for name in ("p1.tif", "p4.tif"):
        (folder / name).write_bytes(b"")
    (tmp_path / "out.csv").write_text("earlier")
    with pytest.raises(scorer.ScoreError, match="2 of 5 patches are unreadable"):
        written(open_input(folder), tmp_path / "out.csv")
    assert [r.getMessage() for r in caplog.records] == [
        f"unreadable patch {folder / name}: empty image file" for name in ("p1.tif", "p4.tif")
    ]
    assert (tmp_path / "out.csv").read_text() == "earlier"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["in", "out.csv"]


def test_skipped_bad_files_have_empty_values_at_their_place(tmp_path):
    folder = folder_of(tmp_path, [0, 0, 200])
    (folder / "p1.tif").write_bytes(b"")
    rows = written(open_input(folder), tmp_path / "out.csv", skip_bad=True)
    assert rows[1:] == [["p0", "0", "normal"], ["p1", "", ""], ["p2", "1", "tumour"]]


def test_nan_is_refused_rather_than_called_normal():
    """NaN >= threshold is False: a broken model would clear every patch."""
    with pytest.raises(scorer.ScoreError, match="version 2 of m gives no finite number for 1 of 2"):
        scorer.finite(np.array([0.5, np.nan]), "version 2 of m")


def model_of(shape=(96, 96, 3), dtype="uint8", outputs=1, output_dtype="float32"):
    tensor = SimpleNamespace(shape=(None, *shape), dtype=dtype)
    return SimpleNamespace(
        input=tensor, output=SimpleNamespace(shape=(None, outputs), dtype=output_dtype)
    )


@pytest.mark.parametrize("recorded", [CONTRACT, None])
def test_contract_of_this_code_is_accepted(recorded):
    """Versions from before contracts were recorded are of format 1."""
    check_contract(recorded, model_of())


@pytest.mark.parametrize(
    ("recorded", "model", "reason"),
    [
        ({**CONTRACT, "format": 2}, model_of(), "format is 2, this code works with 1"),
        ({**CONTRACT, "stain": "normalised"}, model_of(), "stain is normalised"),
        ({**CONTRACT, "preprocessing": "outside"}, model_of(), "preprocessing is outside"),
        (CONTRACT, model_of(dtype="float32"), "input is .*float32"),
        (CONTRACT, model_of(shape=(64, 64, 3)), r"input is .*\[64, 64, 3\]"),
        (CONTRACT, model_of(outputs=2), r"output is .*\[2\]"),
        (None, model_of(outputs=2), r"output is .*\[2\]"),
    ],
)
def test_other_contract_is_refused(recorded, model, reason):
    """Catches a model fed with what it wasn't made for: it answers, and wrongly."""
    with pytest.raises(ContractError, match=reason):
        check_contract(recorded, model)


@pytest.mark.tensorflow
@pytest.mark.parametrize("tta", [False, True])
def test_what_evaluate_writes_is_what_predict_accepts(tta, tmp_path):
    """Catches models/final without its contract, and a contract that its own model breaks."""
    from src.evaluation.operating_point import OperatingPoint
    from src.model.classifier import build_classifier
    from src.model.final import write_final
    from src.model.inference import load_classifier

    params = load_params().model.model_copy(update={"backbone": "resnet_tiny", "input_size": 32})
    seen = {"ids": ["a" * 40], "sha256": ["b" * 64], "slides": []}
    point = OperatingPoint({"min_sensitivity": 0.95}, threshold=0.5, scale=1.0, shift=0.0, tta=tta)
    write_final(tmp_path / "final", build_classifier(params), dataclasses.asdict(point), seen)
    recorded = json.loads((tmp_path / "final" / "contract.json").read_text())
    assert recorded == CONTRACT
    check_contract(recorded, load_classifier(tmp_path / "final"))


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
