"""``metrics.json`` from predictions: figures of holdout, nothing undefined, nothing peeked at."""

import json
from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest

from src.evaluation.intervals import paired_difference
from src.evaluation.looks import Look
from src.evaluation.metrics import METRICS, UndefinedMetric, auroc
from src.evaluation.metrics_report import metrics_report, verdict
from src.evaluation.operating_point import OperatingPoint
from src.evaluation.promotion import against_baseline

POINT = OperatingPoint(rule={"min_sensitivity": 0.95}, threshold=0.4, scale=0.7, shift=-0.3)


def _split(split, n, n_groups, seed):
    rng = np.random.default_rng(seed)
    labels = rng.integers(2, size=n).astype(np.int8)
    return pd.DataFrame(
        {
            "split": split,
            "group": [f"{split}-{g}" for g in rng.integers(n_groups, size=n)],
            "label": labels,
            "logit": rng.normal(labels - 0.5, 1.0),
            "probability": np.clip(rng.normal(0.3 + 0.4 * labels, 0.2), 0, 1),
            "baseline_logistic": np.clip(rng.normal(0.45 + 0.1 * labels, 0.2), 0, 1),
            "baseline_trees": rng.uniform(0, 1, n),
        }
    ).assign(baseline_probability=lambda table: table["baseline_logistic"])


@pytest.fixture
def predictions():
    return pd.concat([_split("val", 150, 6, 1), _split("holdout", 200, 8, 2)], ignore_index=True)


def _report(predictions, point=POINT, **changes):
    settings = {"slide_disjoint": True, "groups_are": "slides", "look": Look(1, "h" * 64)}
    settings |= {"confidence": 0.95, "baseline_threshold": 0.5}
    return metrics_report(predictions, point, **(settings | changes))


def test_figures_are_those_of_holdout(predictions):
    """Metrics over val and holdout together."""
    report = _report(predictions)
    holdout = predictions[predictions["split"] == "holdout"]
    assert report["holdout"]["auroc"] == auroc(holdout["label"], holdout["probability"])
    assert report["baseline"]["auroc"] == auroc(holdout["label"], holdout["baseline_probability"])
    assert report["holdout"]["n_patches"] == 200
    assert report["holdout"]["n_tumour"] == holdout["label"].sum()
    assert report["holdout"]["n_groups"] == 8
    assert report["val"]["n_patches"] == 150


def test_every_metric_with_bounds_around_it(predictions):
    """A bound of another metric."""
    holdout = _report(predictions)["holdout"]
    baseline = _report(predictions)["baseline"]
    for name, metric in METRICS.items():
        for values in (holdout, baseline):
            if metric.scale is None:
                assert f"{name}_low" not in values
            else:
                assert values[f"{name}_low"] < values[name] < values[f"{name}_high"]
    assert not any(key.endswith("_low") for key in _report(predictions)["val"])


def test_verdict_on_the_baseline_is_the_gates(predictions):
    """95 % in the report where the gate asks for more: "Yes" here, refused there."""
    holdout = predictions[predictions["split"] == "holdout"]
    for number in (1, 5):
        report = _report(predictions, look=Look(number, "h" * 64))
        gate = paired_difference(
            holdout["label"],
            holdout["probability"],
            holdout["baseline_probability"],
            holdout["group"],
            confidence=1 - 0.05 / (number * (number + 1)),
        )
        found = report["against_baseline"]
        assert found == {"beats": gate.above_zero, "text": against_baseline(gate), **asdict(gate)}
        assert found["low"] < report["difference_to_baseline"]["auroc_low"]
        assert report["look"] == {"number": number, "archive": "h" * 64}


def test_too_few_groups_leave_figures_without_intervals(predictions):
    """A report that fails after hours of training, or one with intervals from two slides."""
    two = predictions["group"].where(predictions["split"] == "val", predictions.index % 2)
    report = _report(predictions.assign(group=two.astype(str)))
    assert "auroc_low" not in report["holdout"]
    assert report["difference_to_baseline"]["auroc"] > 0
    assert report["against_baseline"]["beats"] is False
    assert "at least 3 groups; got 2" in report["undefined"]["intervals"]
    assert "no interval" in verdict(report)


def test_gain_of_test_time_augmentation_is_paired(predictions):
    """Averaged minus one view, of the same patches."""
    one_view = predictions["probability"] + np.random.default_rng(0).normal(0, 0.05, 350)
    report = _report(predictions.assign(logit_one_view=one_view))
    tta = report["tta"]
    assert "tta" not in _report(predictions)
    assert tta["auroc_gain"] == report["holdout"]["auroc"] - tta["auroc_one_view"]
    assert tta["auroc_gain_low"] < tta["auroc_gain"] < tta["auroc_gain_high"]
    width = report["holdout"]["auroc_high"] - report["holdout"]["auroc_low"]
    assert tta["auroc_gain_high"] - tta["auroc_gain_low"] < width


def test_floor_is_named_from_val_alone(predictions):
    """The baseline chosen on holdout: the more there are, the better the best looks there."""
    baseline = _report(predictions)["baseline"]
    rows = predictions[predictions["split"] == "val"]
    assert baseline["model"] == "logistic regression"
    assert baseline["val_auroc"] == {
        "logistic regression": auroc(rows["label"], rows["baseline_logistic"]),
        "gradient-boosted trees": auroc(rows["label"], rows["baseline_trees"]),
    }
    for side, named in (("holdout", "logistic regression"), ("val", "gradient-boosted trees")):
        perfect = predictions["baseline_trees"].mask(
            predictions["split"] == side, predictions["label"]
        )
        told = _report(predictions.assign(baseline_trees=perfect))["baseline"]["model"]
        assert told == named


def test_row_order_does_not_matter(predictions):
    """Groups numbered by first appearance would be left out in another order, or mixed up."""
    shuffled = predictions.sample(frac=1, random_state=3)
    report, other = _report(predictions), _report(shuffled)
    assert report["holdout"]["auroc_low"] == pytest.approx(other["holdout"]["auroc_low"], rel=1e-12)
    assert report["leave_one_group_out"]["group"] == other["leave_one_group_out"]["group"]


def test_survives_strict_json(predictions):
    """NumPy scalars and NaN, which json either refuses or writes as no JSON."""
    report = _report(predictions)
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_undefined_metric_is_left_out_with_its_reason(predictions):
    """PPV of no patch called tumour as 0 reads as a verdict on the model."""
    report = _report(predictions, OperatingPoint(rule={}, threshold=1.01, scale=1.0, shift=0.0))
    assert "ppv" not in report["holdout"]
    assert "ppv_low" not in report["holdout"]
    assert report["undefined"]["holdout.ppv"].startswith("ppv needs patches called tumour")
    assert report["holdout"]["sensitivity"] == 0


def test_interval_that_rests_on_one_group_is_left_out(predictions):
    """PPV rests on one patch of one group: without it there is none."""
    top = predictions.loc[predictions["split"] == "holdout", "probability"].idxmax()
    point = OperatingPoint(rule={}, threshold=1.0, scale=1.0, shift=0.0)
    predictions["probability"] *= 0.9
    predictions.loc[top, "probability"] = 1.0
    report = _report(predictions, point)
    assert report["holdout"]["ppv"] == predictions.loc[top, "label"]
    assert "ppv_low" not in report["holdout"]
    group = predictions.loc[top, "group"]
    assert f"undefined without {group}" in report["undefined"]["holdout.ppv_low"]


def test_holdout_of_one_class_is_refused(predictions):
    normal = predictions[(predictions["split"] == "val") | (predictions["label"] == 0)]
    with pytest.raises(UndefinedMetric, match="auroc needs patches of both classes"):
        _report(normal)
