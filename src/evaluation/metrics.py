"""Every metric, each defined once for weighted patches.

A :class:`Metric` prepares n patches into a *statistic*: weights (b, n) → values (b,), NaN where a
row of weights leaves the metric undefined. The plain value is the statistic of weights that are all
1; with one group left out its patches weigh 0. So value and interval can't disagree.

To add one: write its statistic, make the :class:`Metric`, name it in ``METRICS``. It then appears
in ``metrics.json`` and in MLflow, and ``tests/evaluation/test_metrics.py`` holds it to the
contract.

Names follow scikit-learn: ``*_loss`` is better when lower. ``Metric.best`` is the value of a
perfect classifier, and nearer to it is better.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from src.evaluation.curves import Floats, ranking
from src.evaluation.recalibration import fit_line, fit_shift, points_of
from src.system.errors import ProjectError

Statistic = Callable[[Floats], Floats]

N_BINS = 15  # of the reliability curve and of ECE: Guo et al. 2017


class UndefinedMetric(ProjectError):
    """A metric has no value for these patches; it is refused, never replaced by a number."""


@dataclass(frozen=True)
class Scored:
    """n patches with what the model says of them.

    ``labels`` (n,) True = tumour; ``scores`` (n,) finite, higher = rather tumour; ``threshold`` on
    the score: a patch is called tumour when score >= threshold.
    """

    labels: NDArray[np.bool_]
    scores: Floats
    threshold: float | None = None

    @property
    def called_tumour(self) -> NDArray[np.bool_]:
        """(n,) True where the score reaches the threshold."""
        if self.threshold is None:
            raise ValueError("this metric needs a threshold on the score")
        return self.scores >= self.threshold

    @property
    def probabilities(self) -> Floats:
        """(n,) the scores, which must lie in [0, 1]."""
        if self.scores.min() < 0 or self.scores.max() > 1:
            raise ValueError(
                f"scores from {self.scores.min():g} to {self.scores.max():g} are no probabilities: "
                "apply the sigmoid to logits first"
            )
        return self.scores


def scored(labels: ArrayLike, scores: ArrayLike, *, threshold: float | None = None) -> Scored:
    """Check labels in {0, 1} and finite scores of equal length, and bring them to their types.

    Raises
    ------
    UndefinedMetric
        There are no patches.
    ValueError
        Lengths differ, a label is neither 0 nor 1, or a score is NaN or infinite.
    """
    labels, scores = np.asarray(labels), np.asarray(scores, dtype=np.float64)
    if labels.ndim != 1 or labels.shape != scores.shape:
        raise ValueError(f"labels {labels.shape} and scores {scores.shape} must be (n,) both")
    if len(labels) == 0:
        raise UndefinedMetric("no patches to score: every metric needs at least one")
    if not np.isin(labels, (0, 1)).all():
        raise ValueError("labels must be 0 (normal) or 1 (tumour)")
    if not np.isfinite(scores).all():
        raise ValueError(f"{np.count_nonzero(~np.isfinite(scores))} scores are not finite")
    return Scored(labels.astype(np.bool_), scores, threshold)


@dataclass(frozen=True)
class Metric:
    """One entry of ``METRICS``.

    ``needs`` says in words what makes the metric defined. ``scale`` is where its interval is
    symmetric: ``logit`` for a share of 0 to 1, ``log`` for a loss above 0, ``plain`` without
    bounds; None: no interval describes it.
    """

    name: str
    title: str
    best: float
    needs: str
    statistic: Callable[[Scored], Statistic]
    scale: Literal["logit", "log", "plain"] | None = "logit"

    def __call__(
        self, labels: ArrayLike, scores: ArrayLike, *, threshold: float | None = None
    ) -> float:
        """The metric of these patches, each of weight 1.

        Raises
        ------
        UndefinedMetric
            It has no value for them.
        """
        return self.of(scored(labels, scores, threshold=threshold))

    def of(self, patches: Scored) -> float:
        """The metric of patches already checked."""
        value = float(self.statistic(patches)(np.ones((1, len(patches.labels))))[0])
        if np.isnan(value):
            n_tumour = int(patches.labels.sum())
            raise UndefinedMetric(
                f"{self.name} needs {self.needs}; got {len(patches.labels) - n_tumour} normal and "
                f"{n_tumour} tumour patches"
            )
        return value


def _auroc(patches: Scored) -> Statistic:
    ranked = ranking(patches.labels, patches.scores)

    def statistic(weights: Floats) -> Floats:
        tumour, above = ranked.counts_above(weights)
        normal = np.subtract(above, tumour, out=above)
        n_pairs = tumour[:, -1] * normal[:, -1]
        steps = _steps(normal)
        # trapezoids: a tie of a tumour and a normal patch counts half
        area = _row_sums(steps, tumour) - 0.5 * _row_sums(steps, _steps(tumour))
        return _ratio(area, n_pairs)

    return statistic


def _average_precision(patches: Scored) -> Statistic:
    ranked = ranking(patches.labels, patches.scores)

    def statistic(weights: Floats) -> Floats:
        tumour, above = ranked.counts_above(weights)
        # the best-ranked patches may all have weight 0; their precision 0/0 is never weighted in
        precision = np.divide(tumour, above, out=above, where=above > 0)
        return _ratio(_row_sums(_steps(tumour), precision), tumour[:, -1])

    return statistic


def _mean_of(per_patch: Floats) -> Statistic:
    return lambda weights: _ratio(weights @ per_patch, weights.sum(axis=1))


def _log_loss(patches: Scored) -> Statistic:
    chance = np.where(patches.labels, patches.probabilities, 1 - patches.probabilities)
    # one certain mistake would make the loss infinite: clipped as scikit-learn does
    return _mean_of(-np.log(np.maximum(chance, np.finfo(np.float64).eps)))


def _brier_loss(patches: Scored) -> Statistic:
    return _mean_of((patches.probabilities - patches.labels) ** 2)


def _ece(patches: Scored) -> Statistic:
    in_bin = bin_of(patches.probabilities)[:, None] == np.arange(N_BINS)  # (n, N_BINS)
    excess = in_bin * (patches.labels - patches.probabilities)[:, None]
    return lambda weights: _ratio(np.abs(weights @ excess).sum(axis=1), weights.sum(axis=1))


def _calibration_slope(patches: Scored) -> Statistic:
    points = points_of(patches.labels, patches.probabilities)
    return lambda weights: fit_line(points, weights)[:, 1]


def _calibration_intercept(patches: Scored) -> Statistic:
    points = points_of(patches.labels, patches.probabilities)
    return lambda weights: fit_shift(points, weights)


def bin_of(probabilities: Floats) -> NDArray[np.intp]:
    """(n,) which of the ``N_BINS`` equal bins of [0, 1] holds each; 1.0 lies in the last."""
    return np.minimum((probabilities * N_BINS).astype(np.intp), N_BINS - 1)


def _share(
    numerator: Callable[[Scored], NDArray[np.bool_]],
    denominator: Callable[[Scored], NDArray[np.bool_]],
) -> Callable[[Scored], Statistic]:
    """The share of the patches in ``denominator`` that are also in ``numerator``."""

    def statistic(patches: Scored) -> Statistic:
        of = denominator(patches)
        both = (of & numerator(patches)).astype(np.float64)
        of = of.astype(np.float64)
        return lambda weights: _ratio(weights @ both, weights @ of)

    return statistic


def _f1(patches: Scored) -> Statistic:
    right = (patches.labels & patches.called_tumour).astype(np.float64)
    either = (patches.labels.astype(np.float64) + patches.called_tumour) / 2
    return lambda weights: _ratio(weights @ right, weights @ either)


def _labels(patches: Scored) -> NDArray[np.bool_]:
    return patches.labels


def _not_labels(patches: Scored) -> NDArray[np.bool_]:
    return ~patches.labels


def _called(patches: Scored) -> NDArray[np.bool_]:
    return patches.called_tumour


def _not_called(patches: Scored) -> NDArray[np.bool_]:
    return ~patches.called_tumour


def _steps(cumulative: Floats) -> Floats:
    return np.diff(cumulative, axis=1, prepend=0.0)


def _row_sums(a: Floats, b: Floats) -> Floats:
    sums: Floats = np.einsum("bm,bm->b", a, b)
    return sums


def _ratio(numerator: Floats, denominator: Floats) -> Floats:
    undefined = np.full(numerator.shape, np.nan)
    ratio: Floats = np.divide(numerator, denominator, out=undefined, where=denominator > 0)
    return ratio


auroc = Metric(
    name="auroc",
    title="AUROC",
    best=1.0,
    needs="patches of both classes",
    statistic=_auroc,
)
"""Chance that a tumour patch scores above a normal one, ties counting half (Mann-Whitney)."""

average_precision = Metric(
    name="average_precision",
    title="average precision",
    best=1.0,
    needs="tumour patches",
    statistic=_average_precision,
)
"""Sum of precision times the step in recall; no interpolation (as scikit-learn)."""

sensitivity = Metric(
    name="sensitivity",
    title="sensitivity",
    best=1.0,
    needs="tumour patches",
    statistic=_share(_called, _labels),
)
"""Share of the tumour patches called tumour."""

specificity = Metric(
    name="specificity",
    title="specificity",
    best=1.0,
    needs="normal patches",
    statistic=_share(_not_called, _not_labels),
)
"""Share of the normal patches called normal."""

ppv = Metric(
    name="ppv",
    title="PPV",
    best=1.0,
    needs="patches called tumour",
    statistic=_share(_labels, _called),
)
"""Share of the patches called tumour that are."""

npv = Metric(
    name="npv",
    title="NPV",
    best=1.0,
    needs="patches called normal",
    statistic=_share(_not_labels, _not_called),
)
"""Share of the patches called normal that are."""

f1 = Metric(
    name="f1",
    title="F1",
    best=1.0,
    needs="patches that are tumour or called so",
    statistic=_f1,
)
"""2 TP / (2 TP + FP + FN)."""

log_loss = Metric(
    name="log_loss",
    title="log loss",
    best=0.0,
    needs="patches",
    statistic=_log_loss,
    scale="log",
)
"""Mean of −ln of the probability given to the true class, in nats."""

brier_loss = Metric(
    name="brier_loss",
    title="Brier loss",
    best=0.0,
    needs="patches",
    statistic=_brier_loss,
    scale="log",
)
"""Mean squared distance of probability and label."""

ece = Metric(
    name="ece",
    title="ECE",
    best=0.0,
    needs="patches",
    statistic=_ece,
    scale=None,  # noise within the bins adds to it: a small value is mostly bias, which no
    # interval around it shows
)
"""Expected calibration error: over ``N_BINS`` equal bins of the probability, the share of patches
in the bin times |share of tumour − mean probability| there (Guo et al. 2017, for the tumour
class)."""

calibration_slope = Metric(
    name="calibration_slope",
    title="calibration slope",
    best=1.0,
    needs="patches of both classes that overlap in probability",
    statistic=_calibration_slope,
    scale="plain",
)
"""Slope of the logistic regression of the label on the logit of the probability (Cox 1958); below 1
the probabilities are too extreme, above 1 too timid."""

calibration_intercept = Metric(
    name="calibration_intercept",
    title="calibration intercept",
    best=0.0,
    needs="patches of both classes",
    statistic=_calibration_intercept,
    scale="plain",
)
"""Its intercept with the slope held at 1, "calibration in the large" (Van Calster et al. 2019):
above 0 there is more tumour than the probabilities say, below 0 less."""

METRICS = {
    metric.name: metric
    for metric in (
        auroc,
        average_precision,
        sensitivity,
        specificity,
        ppv,
        npv,
        f1,
        log_loss,
        brier_loss,
        ece,
        calibration_slope,
        calibration_intercept,
    )
}
