"""``metrics.json`` and ``groups.csv`` as pure functions of ``predictions.parquet`` and the look.

Reported figures come from holdout; those of val are for comparison only.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from logging import Logger
from typing import Any

import numpy as np
import pandas as pd

from src.evaluation.baseline import TITLES, stronger, val_aurocs
from src.evaluation.calibration import at_bound, probability
from src.evaluation.intervals import Interval, Jackknife, paired_difference
from src.evaluation.looks import Look
from src.evaluation.metrics import (
    METRICS,
    OF_PROBABILITIES,
    Metric,
    Scored,
    UndefinedMetric,
    auroc,
    scored,
    sensitivity,
    specificity,
)
from src.evaluation.operating_point import OperatingPoint
from src.evaluation.predictions import ONE_VIEW
from src.evaluation.promotion import against_baseline

Report = dict[str, Any]

MIN_PATCHES = 20  # a smaller group says nothing on its own, and isn't listed


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
    """Every metric of val and holdout, with intervals on holdout, and those of the colour baseline.

    ``predictions`` has the columns of :mod:`src.evaluation.predictions`; ``baseline_threshold`` is
    what the rule of the operating point picks on val for the baseline. ``x_low`` and ``x_high``
    bound ``x`` at ``confidence``; ``against_baseline`` is the gate's own comparison, at the
    confidence that ``look`` leaves. A metric or an interval that is undefined is left out, and
    named with its reason in ``undefined``; nothing is NaN.

    Raises
    ------
    UndefinedMetric
        AUROC on holdout is undefined.
    """
    holdout, val = (predictions[predictions["split"] == name] for name in ("holdout", "val"))
    threshold = operating_point.threshold
    model = scored(holdout["label"], holdout["probability"], threshold=threshold)
    baseline = scored(
        holdout["label"], holdout["baseline_probability"], threshold=baseline_threshold
    )
    val_scored = scored(val["label"], val["probability"], threshold=threshold)
    uncalibrated = scored(holdout["label"], probability(holdout["logit"]))
    auroc.of(model)  # undefined, there is nothing to report
    table = _Table(holdout, confidence)
    report: Report = {
        "holdout": _counts(holdout) | table.bounded("holdout", model),
        "val": _counts(val) | table.values("val", val_scored, METRICS.values()),
        "before_calibration": table.values("before_calibration", uncalibrated, OF_PROBABILITIES),
        "baseline": {
            "model": TITLES[stronger(val)],
            "val_auroc": {TITLES[name]: value for name, value in val_aurocs(val).items()},
            "threshold": baseline_threshold,
        }
        | table.bounded("baseline", baseline),
        "difference_to_baseline": {
            key: value
            for metric in METRICS.values()
            if metric.scale is not None
            for key, value in table.difference(
                "difference_to_baseline", metric, model, baseline, key=metric.name
            ).items()
        },
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
        gain = table.difference("tta", auroc, model, one_view, key="auroc_gain")
        report["tta"] = {"auroc_one_view": auroc.of(one_view)} | gain
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


def log_report(report: Report, log: Logger) -> None:
    """One line of log per fact, the verdict last."""
    point, look = report["operating_point"], report["look"]
    log.info(
        f"from val: scale {point['scale']:.3f}, shift {point['shift']:+.3f}, "
        f"threshold {point['threshold']:.4f}"
    )
    if at_bound(point["scale"]):
        log.warning("the scale ran into its bound: the logits tell nothing of val")
    for name, reason in report["undefined"].items():
        log.warning(f"{name} left out: {reason}")
    if look["number"] > 1:
        log.info(
            f"model {look['number']:,} judged on this archive: the verdict is taken at "
            f"{100 * report['against_baseline'].get('confidence', 1):.4g} % confidence"
        )
    if not report["slide_disjoint"]:
        log.warning(
            f"scores are optimistic: the split is not by slide, its groups are "
            f"{report['groups_are']}"
        )
    log.info(verdict(report))


def group_table(rows: pd.DataFrame, *, threshold: float, confidence: float) -> pd.DataFrame:
    """One row per stain cluster and slide (or, without slides, group) of at least 20 patches.

    ``rows`` has columns label, probability, group, and stain, slide (both nullable). The result has
    kind, name, n_patches, n_tumour, n_groups, auroc, auroc_low, auroc_high, interval_over
    ("groups", or "patches" within one group), sensitivity, specificity, mean_probability,
    auroc_without (of all patches without these); NaN where one is undefined.
    """
    everything = scored(rows["label"], rows["probability"], threshold=threshold)
    group_of = rows["group"].to_numpy(dtype=np.str_)
    found = []
    for kind in ("stain", "slide" if rows["slide"].notna().any() else "group"):
        for name, indices in rows.groupby(kind).indices.items():
            places = np.asarray(indices, dtype=np.intp)
            if len(places) < MIN_PATCHES:
                continue
            patches = everything.take(places)
            others = everything.take(np.setdiff1d(np.arange(len(rows)), places))
            over, members = "groups", group_of[places]
            if len(np.unique(members)) == 1:
                over, members = "patches", np.arange(len(members)).astype(np.str_)
            try:
                interval = Jackknife(patches.labels, members).interval(
                    auroc.statistic(patches), confidence=confidence, scale="logit"
                )
            except UndefinedMetric:
                over, interval = "", Interval(np.nan, np.nan, np.nan)
            found.append(
                {
                    "kind": kind,
                    "name": str(name),
                    "n_patches": len(places),
                    "n_tumour": int(patches.labels.sum()),
                    "n_groups": len(np.unique(group_of[places])),
                    "auroc": _value(auroc, patches),
                    "auroc_low": interval.low,
                    "auroc_high": interval.high,
                    "interval_over": over,
                    "sensitivity": _value(sensitivity, patches),
                    "specificity": _value(specificity, patches),
                    "mean_probability": float(patches.probabilities.mean()),
                    "auroc_without": _value(auroc, others) if len(others.labels) else np.nan,
                }
            )
    return pd.DataFrame(found, columns=None if found else ["kind", "name"])


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

    def values(self, where: str, patches: Scored, metrics: Iterable[Metric]) -> dict[str, float]:
        """Those of the metrics that are defined."""
        found = {}
        for metric in metrics:
            try:
                found[metric.name] = metric.of(patches)
            except UndefinedMetric as error:
                self.undefined[f"{where}.{metric.name}"] = str(error)
        return found

    def bounded(self, where: str, patches: Scored) -> dict[str, float]:
        """Every metric that is defined, with its bounds where it has any."""
        found = self.values(where, patches, METRICS.values())
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

    def difference(
        self, where: str, metric: Metric, one: Scored, other: Scored, *, key: str
    ) -> dict[str, float]:
        """``one`` minus ``other``, paired, as ``key`` with its bounds; or nothing."""
        try:
            value = metric.of(one) - metric.of(other)
        except UndefinedMetric:
            return {}  # already named, with the metric itself
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


def _value(metric: Metric, patches: Scored) -> float:
    try:
        return metric.of(patches)
    except UndefinedMetric:
        return np.nan


def _bounds(name: str, interval: Interval) -> dict[str, float]:
    return {f"{name}_low": interval.low, f"{name}_high": interval.high}


def _counts(rows: pd.DataFrame) -> dict[str, int]:
    return {
        "n_patches": len(rows),
        "n_tumour": int(rows["label"].sum()),
        "n_groups": int(rows["group"].nunique()),
    }
