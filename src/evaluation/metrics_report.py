"""``metrics.json`` as a pure function of ``predictions.parquet`` and of which look this is.

Reported figures come from holdout; those of val are for comparison only.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd

from src.evaluation.baseline import TITLES, stronger, val_aurocs
from src.evaluation.calibration import probability
from src.evaluation.intervals import Interval, Jackknife, paired_difference
from src.evaluation.looks import Look
from src.evaluation.metrics import METRICS, Metric, Scored, UndefinedMetric, auroc, scored
from src.evaluation.operating_point import OperatingPoint
from src.evaluation.predictions import ONE_VIEW, rows_of
from src.evaluation.promotion import against_baseline

Report = dict[str, Any]

CALIBRATION_METRICS = (
    "log_loss",
    "brier_loss",
    "ece",
    "calibration_slope",
    "calibration_intercept",
)


def metrics_report(
    predictions: pd.DataFrame,
    operating_point: OperatingPoint,
    *,
    baseline_threshold: float,
    slide_disjoint: bool,
    groups_are: str,
    confidence: float,
    look: Look,
) -> Report:
    """Every metric of val and holdout, with intervals on holdout, beside the colour baseline.

    ``predictions`` is the table of ``src.evaluation.predictions``; ``baseline_threshold`` is what
    the rule of the operating point picks on val for the baseline. ``x_low`` and ``x_high`` bound
    ``x`` at ``confidence``; ``against_baseline`` is the gate's own comparison, at the confidence
    that ``look`` leaves. A metric or an interval that is undefined is left out, and named with its
    reason in ``undefined``; nothing is NaN.

    Raises
    ------
    UndefinedMetric
        AUROC on holdout is undefined.
    """
    holdout, val = rows_of(predictions, "holdout"), rows_of(predictions, "val")
    threshold = operating_point.threshold
    model = scored(holdout["label"], holdout["probability"], threshold=threshold)
    baseline = scored(
        holdout["label"], holdout["baseline_probability"], threshold=baseline_threshold
    )
    auroc.of(model)  # undefined, there is nothing to report
    table = _Table(holdout, confidence)
    report: Report = {
        "holdout": _counts(holdout) | table.bounded("holdout", model),
        "val": _counts(val)
        | table.values(
            "val", scored(val["label"], val["probability"], threshold=threshold), METRICS
        ),
        "before_calibration": table.values(
            "before_calibration",
            scored(holdout["label"], probability(holdout["logit"])),
            CALIBRATION_METRICS,
        ),
        "baseline": {
            "model": TITLES[stronger(val)],
            "val_auroc": {TITLES[name]: value for name, value in val_aurocs(val).items()},
            "threshold": baseline_threshold,
        }
        | table.bounded("baseline", baseline),
        "difference_to_baseline": table.differences(model, baseline),
        "against_baseline": _against_baseline(holdout, look.confidence(confidence)),
        "look": asdict(look),
        "leave_one_group_out": table.leave_one_group_out(model),
        "slide_disjoint": slide_disjoint,
        "groups_are": groups_are,
        "operating_point": {
            "threshold": threshold,
            "scale": operating_point.scale,
            "shift": operating_point.shift,
            "tta": operating_point.tta,
            **operating_point.rule,
        },
        "confidence": confidence,
        "undefined": table.undefined,
    }
    if ONE_VIEW in holdout:
        one_view = scored(holdout["label"], holdout[ONE_VIEW])
        report["tta"] = {"auroc_one_view": auroc.of(one_view)} | table.difference(
            "tta", auroc, model, one_view, key="auroc_gain"
        )
    return report


def verdict(report: Report) -> str:
    """The report in one line."""
    holdout = report["holdout"]
    interval = "no interval"
    if "auroc_low" in holdout:
        low, high = holdout["auroc_low"], holdout["auroc_high"]
        interval = f"{100 * report['confidence']:g} % interval {low:.2f} to {high:.2f}"
    return (
        f"holdout AUROC {holdout['auroc']:.3f} ({interval}, {holdout['n_patches']:,} patches, "
        f"{holdout['n_groups']:,} groups); colour baseline {report['baseline']['auroc']:.3f}; "
        f"{report['against_baseline']['text']}"
    )


def _against_baseline(holdout: pd.DataFrame, confidence: float) -> dict[str, Any]:
    """What the rule ``beats_baseline`` says of this model, in its own words."""
    try:
        difference = paired_difference(
            holdout["label"],
            holdout["probability"],
            holdout["baseline_probability"],
            holdout["group"],
            confidence=confidence,
        )
    except UndefinedMetric as error:
        return {"beats": False, "text": f"can't be compared with the colour baseline: {error}"}
    return {
        "beats": difference.above_zero,
        "text": against_baseline(difference),
        **asdict(difference),
    }


class _Table:
    """Metrics of the holdout patches with bounds; what is undefined is named and left out."""

    def __init__(self, holdout: pd.DataFrame, confidence: float) -> None:
        self.undefined: dict[str, str] = {}
        self._confidence = confidence
        self._jackknife: Jackknife | None = None
        try:
            self._jackknife = Jackknife(holdout["label"], holdout["group"])
        except UndefinedMetric as error:
            self.undefined["intervals"] = str(error)

    def values(self, where: str, patches: Scored, names: Iterable[str]) -> dict[str, float]:
        """The named metrics that are defined."""
        found = {}
        for name in names:
            try:
                found[name] = METRICS[name].of(patches)
            except UndefinedMetric as error:
                self.undefined[f"{where}.{name}"] = str(error)
        return found

    def bounded(self, where: str, patches: Scored) -> dict[str, float]:
        """Every metric that is defined, with its bounds where it has any."""
        found = self.values(where, patches, METRICS)
        for metric in [METRICS[name] for name in found]:
            if self._jackknife is None or metric.scale is None:
                continue
            try:
                interval = self._jackknife.interval(
                    metric.statistic(patches), confidence=self._confidence, scale=metric.scale
                )
            except UndefinedMetric as error:
                self.undefined[f"{where}.{metric.name}_low"] = str(error)
            else:
                found |= _bounds(metric.name, interval)
        return found

    def differences(self, model: Scored, baseline: Scored) -> dict[str, float]:
        """Model minus baseline, paired, of every metric that has an interval."""
        found: dict[str, float] = {}
        for metric in METRICS.values():
            if metric.scale is not None:
                found |= self.difference("difference_to_baseline", metric, model, baseline)
        return found

    def difference(
        self, where: str, metric: Metric, one: Scored, other: Scored, *, key: str | None = None
    ) -> dict[str, float]:
        """``key`` (default: the metric's name) with its bounds, or nothing."""
        key = key or metric.name
        try:
            value = metric.of(one) - metric.of(other)
        except UndefinedMetric:
            return {}  # named where the metric itself stands
        if self._jackknife is None:
            return {key: value}
        try:
            difference = self._jackknife.difference(
                metric.statistic(one), metric.statistic(other), confidence=self._confidence
            )
        except UndefinedMetric as error:
            self.undefined[f"{where}.{key}_low"] = str(error)
            return {key: value}
        return {key: value} | _bounds(key, difference)

    def leave_one_group_out(self, patches: Scored) -> dict[str, Any]:
        """How far one group alone moves the AUROC; empty where nothing can be left out."""
        if self._jackknife is None or self._jackknife.n_groups > len(self._jackknife.names):
            return {}
        whole, *left_out = self._jackknife.values(auroc.statistic(patches))
        if np.isnan(left_out).all():
            return {}
        changes = np.abs(np.array(left_out) - whole)
        return {
            "swing": float(np.nanmax(changes)),
            "group": self._jackknife.names[int(np.nanargmax(changes))],
            "auroc_lowest": float(np.nanmin(left_out)),
            "auroc_highest": float(np.nanmax(left_out)),
            "n_undefined": int(np.isnan(left_out).sum()),
        }


def _bounds(name: str, interval: Interval) -> dict[str, float]:
    return {f"{name}_low": interval.low, f"{name}_high": interval.high}


def _counts(rows: pd.DataFrame) -> dict[str, int]:
    return {
        "n_patches": len(rows),
        "n_tumour": int(rows["label"].sum()),
        "n_groups": int(rows["group"].nunique()),
    }
