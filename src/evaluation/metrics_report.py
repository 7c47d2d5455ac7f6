"""``metrics.json`` as a pure function of ``predictions.parquet``.

Reported figures come from holdout; val stands beside them for comparison only.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from src.evaluation.baseline import TITLES, stronger, val_aurocs
from src.evaluation.calibration import probability
from src.evaluation.delong import delong, delong_difference
from src.evaluation.groups import leave_one_group_out
from src.evaluation.intervals import Resampled, resample
from src.evaluation.metrics import METRICS, Scored, UndefinedMetric, auroc, scored
from src.evaluation.operating_point import OperatingPoint
from src.evaluation.predictions import ONE_VIEW, rows_of

if TYPE_CHECKING:
    import pandas as pd

Report = dict[str, Any]

CALIBRATION_METRICS = (
    "log_loss",
    "brier_loss",
    "ece",
    "calibration_slope",
    "calibration_intercept",
)
_MODEL, _BASELINE, _ONE_VIEW = "model.", "baseline.", "one view"


def metrics_report(
    predictions: "pd.DataFrame",
    operating_point: OperatingPoint,
    *,
    baseline_threshold: float,
    slide_disjoint: bool,
    groups_are: str,
    n_resamples: int,
    confidence: float,
    seed: int,
) -> Report:
    """Every metric of val and holdout, with intervals on holdout, beside the colour baseline.

    ``predictions`` is the table of ``src.evaluation.predictions``; ``baseline_threshold`` is what
    the rule of the operating point picks on val for the baseline. ``x_low`` and ``x_high`` bound
    ``x``. A metric or an interval that is undefined is left out, and named with its reason in
    ``undefined``; nothing is NaN.

    Raises
    ------
    UndefinedMetric
        AUROC on holdout, or its interval, is undefined: the report would have no verdict.
    """
    holdout, val = rows_of(predictions, "holdout"), rows_of(predictions, "val")
    threshold = operating_point.threshold
    model = scored(holdout["label"], holdout["probability"], threshold=threshold)
    baseline = scored(
        holdout["label"], holdout["baseline_probability"], threshold=baseline_threshold
    )
    one_view = _of_one_view(holdout)
    auroc.of(model)  # undefined, it is refused before any interval is
    resampled = resample(
        _statistics(model, _MODEL)
        | _statistics(baseline, _BASELINE)
        | ({} if one_view is None else {_ONE_VIEW: auroc.statistic(one_view)}),
        holdout["label"],
        holdout["group"],
        n_resamples=n_resamples,
        rng=np.random.default_rng(seed),
    )
    table = _Table(resampled, confidence)
    of_model = table.of(model, "holdout", _MODEL)
    of_baseline = table.of(baseline, "baseline", _BASELINE)
    differences = table.differences(of_model, of_baseline)
    report = {
        "holdout": _counts(holdout)
        | of_model
        | table.guarded("holdout.auroc_delong_low", lambda: _delong(model, confidence)),
        "val": _counts(val)
        | table.values(
            scored(val["label"], val["probability"], threshold=threshold), "val", METRICS
        ),
        "before_calibration": table.values(
            scored(holdout["label"], probability(holdout["logit"])),
            "before_calibration",
            CALIBRATION_METRICS,
        ),
        "baseline": {
            "model": TITLES[stronger(val)],
            "val_auroc": {TITLES[name]: value for name, value in val_aurocs(val).items()},
            "threshold": baseline_threshold,
        }
        | of_baseline,
        "difference_to_baseline": differences
        | table.guarded(
            "difference_to_baseline.auroc_delong_low",
            lambda: _delong_difference(model, baseline, confidence),
        ),
        "beats_baseline": differences["auroc_low"] > 0,
        "leave_one_group_out": table.guarded(
            "leave_one_group_out", lambda: _leave_one_out(holdout)
        ),
        "slide_disjoint": slide_disjoint,
        "groups_are": groups_are,
        "operating_point": {
            "threshold": threshold,
            "scale": operating_point.scale,
            "shift": operating_point.shift,
            "tta": operating_point.tta,
            **operating_point.rule,
        },
        "bootstrap": {
            "confidence": confidence,
            "n_resamples": n_resamples,
            "n_redrawn": resampled.n_redrawn,
        },
        "undefined": table.undefined,
    }
    if one_view is not None:
        report["tta"] = _gain(of_model["auroc"], auroc.of(one_view), resampled, confidence)
    return report


def verdict(report: Report) -> str:
    """The report in one line."""
    holdout, baseline = report["holdout"], report["baseline"]
    difference = report["difference_to_baseline"]
    beats = "beats" if report["beats_baseline"] else "does not beat"
    return (
        f"holdout AUROC {holdout['auroc']:.3f} ({100 * report['bootstrap']['confidence']:g} % "
        f"{holdout['auroc_low']:.2f} to {holdout['auroc_high']:.2f}, "
        f"{holdout['n_patches']:,} patches, {holdout['n_groups']:,} groups); "
        f"colour baseline {baseline['auroc']:.3f}; difference {difference['auroc']:+.3f} "
        f"({difference['auroc_low']:.2f} to {difference['auroc_high']:.2f}): {beats} the baseline"
    )


class _Table:
    """Values and bounds from one set of resamples; what is undefined is named and left out."""

    def __init__(self, resampled: Resampled, confidence: float) -> None:
        self.undefined: dict[str, str] = {}
        self._resampled = resampled
        self._confidence = confidence

    def of(self, patches: Scored, where: str, prefix: str) -> dict[str, float]:
        """Every metric that is defined, with its bounds; AUROC has to have them."""
        self._resampled.bounds(f"{prefix}auroc", confidence=self._confidence)
        values = self.values(patches, where, METRICS)
        found = dict(values)
        for name, value in values.items():
            found |= self.guarded(
                f"{where}.{name}_low", lambda n=name, v=value: self._bounds(n, v, prefix)
            )
        return found

    def values(self, patches: Scored, where: str, names: Any) -> dict[str, float]:
        """The named metrics that are defined."""
        found: dict[str, float] = {}
        for name in names:
            found |= self.guarded(f"{where}.{name}", lambda n=name: {n: METRICS[n].of(patches)})
        return found

    def differences(
        self, of_model: Mapping[str, float], of_baseline: Mapping[str, float]
    ) -> dict[str, float]:
        """Model minus baseline, of every metric that both have and whose interval is paired."""
        found: dict[str, float] = {}
        for name, metric in METRICS.items():
            if metric.interval == "percentile" and name in of_model and name in of_baseline:
                found[name] = of_model[name] - of_baseline[name]
                found |= self.guarded(
                    f"difference_to_baseline.{name}_low", lambda n=name: self._difference_bounds(n)
                )
        return found

    def guarded(self, name: str, compute: Any) -> dict[str, Any]:
        """What ``compute`` returns, or nothing and the reason under ``name``."""
        try:
            return dict(compute())
        except UndefinedMetric as error:
            self.undefined[name] = str(error)
            return {}

    def _bounds(self, name: str, value: float, prefix: str) -> dict[str, float]:
        bounds = self._resampled.metric_bounds(
            f"{prefix}{name}", METRICS[name], value, confidence=self._confidence
        )
        return _as_bounds(name, *bounds)

    def _difference_bounds(self, name: str) -> dict[str, float]:
        return _as_bounds(
            name,
            *self._resampled.difference_bounds(
                f"{_MODEL}{name}", f"{_BASELINE}{name}", confidence=self._confidence
            ),
        )


def _statistics(patches: Scored, prefix: str) -> dict[str, Any]:
    return {f"{prefix}{name}": metric.statistic(patches) for name, metric in METRICS.items()}


def _delong(patches: Scored, confidence: float) -> dict[str, float]:
    interval = delong(patches.labels, patches.scores, confidence=confidence)
    return _as_bounds("auroc_delong", interval.low, interval.high)


def _delong_difference(model: Scored, baseline: Scored, confidence: float) -> dict[str, float]:
    difference = delong_difference(
        model.labels, model.scores, baseline.scores, confidence=confidence
    )
    return _as_bounds("auroc_delong", difference.low, difference.high)


def _leave_one_out(rows: "pd.DataFrame") -> dict[str, Any]:
    left_out = leave_one_group_out(rows["label"], rows["probability"], rows["group"])
    return {
        "swing": left_out.swing,
        "group": left_out.most_influential,
        "auroc_lowest": float(np.nanmin(left_out.aurocs)),
        "auroc_highest": float(np.nanmax(left_out.aurocs)),
        "n_undefined": int(np.isnan(left_out.aurocs).sum()),
    }


def _of_one_view(rows: "pd.DataFrame") -> Scored | None:
    return scored(rows["label"], rows[ONE_VIEW]) if ONE_VIEW in rows else None


def _gain(value: float, one_view: float, resampled: Resampled, confidence: float) -> Report:
    bounds = resampled.difference_bounds(f"{_MODEL}auroc", _ONE_VIEW, confidence=confidence)
    return {"auroc_one_view": one_view, "auroc_gain": value - one_view} | _as_bounds(
        "auroc_gain", *bounds
    )


def _as_bounds(name: str, low: float, high: float) -> dict[str, float]:
    return {f"{name}_low": low, f"{name}_high": high}


def _counts(rows: "pd.DataFrame") -> dict[str, int]:
    return {
        "n_patches": len(rows),
        "n_tumour": int(rows["label"].sum()),
        "n_groups": int(rows["group"].nunique()),
    }
