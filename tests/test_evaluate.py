"""What the stage puts together: nothing from holdout steers a choice, one report everywhere."""

import json
import logging
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from src import evaluate, paths
from src.data.dataset import LabelledPatches, OtherData, SplitKind
from src.evaluation.baseline import N_FEATURES
from src.evaluation.intervals import Difference
from src.evaluation.looks import Look
from src.evaluation.metrics import auroc, calibration_intercept, calibration_slope, ece
from src.evaluation.metrics_report import log_report
from src.evaluation.promotion import Evidence, decide
from src.params import load_params
from src.system.durable import verify_folder, write_json
from src.tracking import looks
from tests.data.tables import patches_frame

PARAMS = load_params().evaluate
FIRST = Look(1, "0" * 64)


def _patches(split, n, seed):
    rng = np.random.default_rng(seed)
    return LabelledPatches(
        split=split,
        ids=np.array([f"{split}{row:036d}" for row in range(n)]),
        rows=np.arange(n),
        labels=rng.integers(2, size=n).astype(np.uint8),
        groups=np.array([f"{split}-{row % 6}" for row in range(n)]),
        pixels=np.zeros((n, 96, 96, 3), np.uint8),
    )


@pytest.fixture
def predictions():
    rng = np.random.default_rng(0)
    train, val, holdout = (_patches(s, 120, i) for i, s in enumerate(("train", "val", "holdout")))
    return evaluate.predictions_of(
        train,
        (val, holdout),
        logits=[rng.normal(3.0 * s.labels - 1.5, 2.0, (1, 120)) for s in (val, holdout)],
        histograms=[_telling_histograms(split, rng) for split in (train, val, holdout)],
        seed=1,
    ).assign(slide=None, stain="A #c0a0c0")


def _telling_histograms(patches, rng):
    """Noise, with a first feature that gives the label away."""
    histograms = rng.random((len(patches), N_FEATURES), dtype=np.float32)
    histograms[:, 0] = 10.0 * patches.labels
    return histograms


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    """Outputs in a temporary folder, and a split by slide."""
    folders = ("EVALUATE", "PLOTS", "HEAD_MODEL", "FINETUNED_MODEL")
    for name in folders:
        monkeypatch.setattr(paths, name, tmp_path / name.lower())
    monkeypatch.setattr(paths, "PREDICTIONS", paths.EVALUATE / "predictions.parquet")
    monkeypatch.setattr(evaluate, "split_kind", lambda: SplitKind(True, "slides"))
    return tmp_path


def _with_shuffled_labels(predictions, split, seed=9):
    rows = predictions["split"] == split
    shuffled = predictions.copy()
    shuffled.loc[rows, "label"] = np.random.default_rng(seed).permutation(
        predictions.loc[rows, "label"]
    )
    return shuffled


def test_predictions_hold_every_val_and_holdout_patch(predictions):
    """Train patches among the figures, or val and holdout logits swapped."""
    assert predictions.groupby("split").size().to_dict() == {"holdout": 120, "val": 120}
    assert predictions.dtypes.astype(str).to_dict() == {
        "id": "str",
        "split": "str",
        "group": "str",
        "label": "int8",
        "logit": "float64",
        "probability": "float64",
        "baseline_logistic": "float64",
        "baseline_trees": "float64",
        "baseline_probability": "float64",
        "slide": "object",
        "stain": "str",
    }
    for _, rows in predictions.groupby("split"):
        assert auroc(rows["label"], rows["probability"]) > 0.75
        assert auroc(rows["label"], rows["baseline_probability"]) > 0.9


@pytest.mark.parametrize("prevalence", [0.405, 0.2])
def test_what_class_weights_add_to_the_logits_is_taken_back(prevalence):
    """Balanced weights move every logit by ln(w₁ / w₀), which no scale can take back.

    The logits are exact log odds (N(0, 1) for normal, N(2, 1) for tumour patches) and that shift.
    """
    rng = np.random.default_rng(0)
    log_odds = np.log(prevalence / (1 - prevalence))
    tables = [_patches("train", 120, 0)]
    for split in ("val", "holdout"):
        labels = (rng.random(20_000) < prevalence).astype(np.uint8)
        tables.append(replace(_patches(split, 1, 0), ids=np.arange(20_000), labels=labels))
        tables[-1] = replace(tables[-1], groups=np.repeat("g", 20_000), rows=np.arange(20_000))
    logits = [2 * rng.normal(2.0 * s.labels, 1.0) - 2 + log_odds for s in tables[1:]]
    predictions = evaluate.predictions_of(
        tables[0],
        (tables[1], tables[2]),
        logits=[(split - log_odds)[None] for split in logits],  # ln(w₁ / w₀) = −log odds
        histograms=[_telling_histograms(split, rng) for split in tables],
        seed=1,
    )
    val, holdout = (rows for _, rows in predictions.groupby("split", sort=False))
    assert val["probability"].mean() == pytest.approx(val["label"].mean(), abs=0.005)
    of_holdout = holdout["label"], holdout["probability"]
    # exact probabilities of as many patches have 0 ± 0.04, 1 ± 0.03 and 0.006
    assert calibration_intercept(*of_holdout) == pytest.approx(0, abs=0.06)
    assert calibration_slope(*of_holdout) == pytest.approx(1, abs=0.05)
    assert ece(*of_holdout) < 0.01


def test_holdout_labels_do_not_move_the_operating_point(predictions):
    """Peeking."""
    point = evaluate.operating_point_on_val(predictions, PARAMS)
    shuffled = evaluate.operating_point_on_val(
        _with_shuffled_labels(predictions, "holdout"), PARAMS
    )
    assert shuffled == point


def test_val_labels_do_move_it(predictions):
    """A threshold that is a constant passes the test above."""
    point = evaluate.operating_point_on_val(predictions, PARAMS)
    shuffled = evaluate.operating_point_on_val(_with_shuffled_labels(predictions, "val"), PARAMS)
    assert shuffled.threshold != point.threshold
    assert shuffled.scale != point.scale
    assert shuffled.shift != point.shift


def test_model_of_another_split_is_not_evaluated(tmp_path, monkeypatch):
    """Catches a leaked holdout: split with another seed, then a flattering AUROC."""
    names = ("HEAD_MODEL", "FINETUNED_MODEL", "INGEST_REPORT", "SPLIT")
    for name in names:
        monkeypatch.setattr(paths, name, tmp_path / name.lower().removesuffix("_model"))
    paths.SPLIT.write_bytes(b"split anew")
    write_json(paths.INGEST_REPORT, {"digests": {"train": "f" * 64}})
    dataset = {"content_digest": "f" * 64, "split_sha256": "0" * 64}
    for folder in (paths.HEAD_MODEL, paths.FINETUNED_MODEL):
        write_json(folder / "run.json", {"run_id": "r", "record": {"dataset": dataset}})
    monkeypatch.setattr(evaluate, "start_scoring", lambda _: pytest.fail("was started"))
    with pytest.raises(OtherData, match="head was trained on another split"):
        evaluate.main()


def test_scores_are_made_without_tf32(monkeypatch):
    """Catches products on 10 bits of mantissa, which differ from graph to graph."""
    started = []

    def start(*_, **settings):
        started.append(settings["tf32"])
        raise InterruptedError

    monkeypatch.setattr(evaluate, "check_trained_here", lambda *_: None)
    monkeypatch.setattr("src.system.determinism.start_tensorflow", start)
    with pytest.raises(InterruptedError):
        evaluate.main()
    assert started == [False]


def test_seen_are_train_and_val_with_their_pixels_and_slides(monkeypatch):
    """Catches val left out, which chose epoch and threshold, holdout taken for seen, and a slide
    without a name called 'None'."""
    table = patches_frame([0, 1, 0, 1], n_test=1)
    table["slide"] = [None, "of holdout", "of train", "of holdout", "of test"]
    splits = {"train": [2], "val": [0], "holdout": [1, 3]}
    monkeypatch.setattr(evaluate, "read_patches", lambda _: table)
    monkeypatch.setattr(
        evaluate,
        "load_split",
        lambda split: SimpleNamespace(ids=table["id"].to_numpy(dtype=str)[splits[split]]),
    )
    assert evaluate.seen_in_training() == {
        "ids": [f"{i:040x}" for i in (0, 2)],
        "sha256": [f"{i:064x}" for i in (0, 2)],
        "slides": ["of train"],
    }


def test_shuffled_holdout_labels_promote_nothing(predictions, workspace):  # noqa: ARG001
    """A result that comes from anything but the labels: a leak, the split, the rules themselves."""
    right = predictions.assign(baseline_probability=np.linspace(0, 1, 240) % 0.1)
    shuffled = [_with_shuffled_labels(right, "holdout", seed) for seed in range(20)]
    (auroc_right, is_promoted), *chance = (_judged(table) for table in (right, *shuffled))
    assert auroc_right > 0.75
    assert is_promoted
    assert np.mean([found for found, _ in chance]) == pytest.approx(0.5, abs=0.04)
    assert sum(promoted for _, promoted in chance) <= 1  # nominal 1 in 80


def _judged(predictions):
    """AUROC by ``evaluate``, decision by the rules of the gate."""
    point = evaluate.operating_point_on_val(predictions, PARAMS)
    report = evaluate.report_of(predictions, point, FIRST, PARAMS)
    against = report["against_baseline"]
    evidence = Evidence(
        to_baseline=Difference(*(against[k] for k in ("value", "low", "high", "confidence"))),
        to_champion=None,
        margin=0.0,
        n_groups={"normal": 6, "tumour": 6},
        min_groups=5,
        look=FIRST,
        reload_error=0.0,
        golden_error=0.0,
    )
    return report["holdout"]["auroc"], decide(evidence).promote


def _write_fits():
    epoch = {"epoch": 1, "loss": 0.7, "val_loss": 0.6, "val_auroc": 0.8, "learning_rate": 1e-3}
    fit = {
        "history": [epoch],
        "schedule": {"name": "constant"},
        "best_epoch": 1,
        "stopped_early": False,
    }
    for stage, folder in (("train", paths.HEAD_MODEL), ("finetune", paths.FINETUNED_MODEL)):
        folder.mkdir()
        (folder / "fit.json").write_text(json.dumps(fit | {"stage": stage}))


def test_plots_folder_is_complete(predictions, workspace):  # noqa: ARG001
    """A name that dvc.yaml asks for and nobody writes."""
    _write_fits()
    point = evaluate.operating_point_on_val(predictions, PARAMS)
    report = evaluate.report_of(predictions, point, FIRST, PARAMS)
    evaluate.write_plots(predictions[predictions["split"] == "holdout"], report)
    names = ("roc", "precision_recall", "confusion", "loss", "learning_rate", "groups")
    csv = {f"{name}.csv" for name in names}
    png = {"roc.png", "precision_recall.png", "confusion.png", "reliability.png", "histogram.png"}
    assert set(verify_folder(paths.PLOTS)) == csv | png | {"learning_curves.png"}


def test_log_names_what_weakens_the_verdict(predictions, workspace, caplog, monkeypatch):  # noqa: ARG001
    """An optimistic score that looks like any other."""
    monkeypatch.setattr(evaluate, "split_kind", lambda: SplitKind(False, "stand-ins"))
    few = predictions.assign(group=predictions["group"].str.replace(r"[2-5]$", "0", regex=True))
    point = evaluate.operating_point_on_val(few, PARAMS)
    log = logging.getLogger("test")
    with caplog.at_level(logging.INFO, logger="test"):
        log_report(evaluate.report_of(few, point, Look(3, "0" * 64), PARAMS), log)
    lines = [record.getMessage() for record in caplog.records]
    kind = "the split is not by slide, its groups are stand-ins"
    assert f"scores are optimistic: {kind}" in lines
    assert any(line.startswith("intervals left out: an interval needs") for line in lines)
    assert any(line.startswith("model 3 judged on this archive") for line in lines)
    assert lines[-1].startswith("holdout AUROC 0.")
    assert lines[-1].endswith(
        ": an interval needs at least 3 groups; got 2: raise the fraction of this split or give "
        "more slides"
    )


def test_look_is_known_by_weights_and_views(monkeypatch):
    """Catches a look taken by test-time augmentation, and a count that ``register`` takes anew."""
    keys = {tta: looks.model_key("b" * 64, tta=tta) for tta in (False, True)}
    assert keys[False] != keys[True]
    for tta, key in keys.items():
        evidence = {"final_weights_sha256": "b" * 64}
        version = SimpleNamespace(run_id="run", evidence=evidence, operating_point={"tta": tta})
        monkeypatch.setattr(looks, "take_look", lambda *look: look)
        assert looks.look_of(version, "digest") == ("run", "digest", key)
