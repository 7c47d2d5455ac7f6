"""Every metric, each defined once for weighted patches.

A :class:`Metric` prepares n patches into a *statistic*: weights (b, n) → values (b,), NaN where a
row of weights leaves the metric undefined. The plain value is the statistic of weights that are all
1; with one group left out its patches weigh 0. So value and interval can't disagree.

To add one: write its statistic, make the :class:`Metric`, name it in ``METRICS``. It then appears
in ``metrics.json`` and in MLflow, and ``tests/evaluation/test_metrics.py`` checks its contract.

Names follow scikit-learn: ``*_loss`` is better when lower. ``Metric.best`` is the value of a
perfect classifier; nearer is better.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression

from src.system.errors import ProjectError

Floats = NDArray[np.float64]
Statistic = Callable[[Floats], Floats]

N_BINS = 15  # of the reliability curve and of ECE: Guo et al. 2017
_EPS = np.finfo(np.float64).eps


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
    def called_normal(self) -> NDArray[np.bool_]:
        """(n,) True below it."""
        return ~self.called_tumour

    @property
    def normal(self) -> NDArray[np.bool_]:
        """(n,) the labels turned round."""
        return ~self.labels

    @property
    def probabilities(self) -> Floats:
        """(n,) the scores, which must lie in [0, 1]."""
        if self.scores.min() < 0 or self.scores.max() > 1:
            raise ValueError(
                f"scores from {self.scores.min():g} to {self.scores.max():g} are no probabilities: "
                "apply the sigmoid to logits first"
            )
        return self.scores

    def take(self, places: NDArray[np.intp]) -> Scored:
        """The patches at ``places`` (k,)."""
        return Scored(self.labels[places], self.scores[places], self.threshold)


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
    symmetric: ``logit`` for a share of 0 to 1, ``log`` for a loss above 0; None: a point estimate.
    """

    name: str
    title: str
    best: float
    needs: str
    statistic: Callable[[Scored], Statistic]
    scale: Literal["logit", "log"] | None = "logit"

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


@dataclass(frozen=True)
class Ranking:
    """The order of n patches by falling score; those of equal score enter a curve together.

    ``order`` (n,) sorts them, ``labels`` (n,) is 1.0 for tumour in that order, and ``ends`` (m,)
    is the last place of each of the m distinct scores.
    """

    order: NDArray[np.intp]
    labels: Floats
    ends: NDArray[np.intp]

    def counts_above(self, weights: Floats) -> tuple[Floats, Floats]:
        """Weight of the tumour patches, and of all, that score at least each distinct score.

        ``weights`` is (b, n) in the patches' own order, one row per weighting; both results (b, m).
        """
        ranked = np.take(weights, self.order, axis=1)
        # sums of whole numbers below 2**53 are exact, so the order of adding is irrelevant
        above = np.cumsum(ranked, axis=1)[:, self.ends]
        ranked *= self.labels
        return np.cumsum(ranked, axis=1)[:, self.ends], above


def ranking(patches: Scored) -> Ranking:
    """Sort n patches by falling score."""
    order = np.argsort(-patches.scores, kind="stable")
    falls = np.diff(patches.scores[order]) < 0
    ends = np.append(np.flatnonzero(falls), len(order) - 1)
    return Ranking(order, patches.labels[order].astype(np.float64), ends)


def bin_of(probabilities: Floats) -> NDArray[np.intp]:
    """(n,) which of the ``N_BINS`` equal bins of [0, 1] each falls in; 1.0 is in the last."""
    return np.minimum((probabilities * N_BINS).astype(np.intp), N_BINS - 1)


def ratio(numerator: Floats, denominator: Floats) -> Floats:
    """Elementwise quotient; NaN where the denominator is 0."""
    undefined = np.full(numerator.shape, np.nan)
    quotient: Floats = np.divide(numerator, denominator, out=undefined, where=denominator > 0)
    return quotient


def shift_to_mean(logits: Floats, mean: float, weights: Floats | None = None) -> float:
    """The shift at which the (weighted) mean of sigmoid(logit + shift) is ``mean`` of (0, 1).

    That is where the log loss of labels with this mean is least.
    """
    centred = logit(mean) - logits  # the shift that each patch would need on its own
    return float(
        brentq(
            lambda shift: np.average(expit(logits + shift), weights=weights) - mean,
            centred.min() - 1,
            centred.max() + 1,
            xtol=1e-12,
        )
    )


def _auroc(patches: Scored) -> Statistic:
    ranked = ranking(patches)

    def statistic(weights: Floats) -> Floats:
        tumour, above = ranked.counts_above(weights)
        normal = np.subtract(above, tumour, out=above)
        n_pairs = tumour[:, -1] * normal[:, -1]
        # trapezoids: a tie of a tumour and a normal patch counts half
        area = _row_sums(_steps(normal), tumour - 0.5 * _steps(tumour))
        return ratio(area, n_pairs)

    return statistic


def _average_precision(patches: Scored) -> Statistic:
    ranked = ranking(patches)

    def statistic(weights: Floats) -> Floats:
        tumour, above = ranked.counts_above(weights)
        # the best-ranked patches may all have weight 0; their precision 0/0 is never weighted in
        precision = np.divide(tumour, above, out=above, where=above > 0)
        return ratio(_row_sums(_steps(tumour), precision), tumour[:, -1])

    return statistic


def _steps(cumulative: Floats) -> Floats:
    return np.diff(cumulative, axis=1, prepend=0.0)


def _row_sums(a: Floats, b: Floats) -> Floats:
    sums: Floats = np.einsum("bm,bm->b", a, b)
    return sums


def _share(part: str, *, of: str) -> Callable[[Scored], Statistic]:
    """The share of the patches ``of`` one kind that are also ``part`` of another (``Scored``)."""

    def statistic(patches: Scored) -> Statistic:
        whole = getattr(patches, of).astype(np.float64)
        both = whole * getattr(patches, part)
        return lambda weights: ratio(weights @ both, weights @ whole)

    return statistic


def _f1(patches: Scored) -> Statistic:
    right = (patches.labels & patches.called_tumour).astype(np.float64)
    either = (patches.labels.astype(np.float64) + patches.called_tumour) / 2
    return lambda weights: ratio(weights @ right, weights @ either)


def _mean_of(per_patch: Floats) -> Statistic:
    return lambda weights: ratio(weights @ per_patch, weights.sum(axis=1))


def _log_loss(patches: Scored) -> Statistic:
    chance = np.where(patches.labels, patches.probabilities, 1 - patches.probabilities)
    # one certain mistake would make the loss infinite: clipped as scikit-learn does
    return _mean_of(-np.log(np.maximum(chance, _EPS)))


def _brier_loss(patches: Scored) -> Statistic:
    return _mean_of((patches.probabilities - patches.labels) ** 2)


def _ece(patches: Scored) -> Statistic:
    in_bin = bin_of(patches.probabilities)[:, None] == np.arange(N_BINS)  # (n, N_BINS)
    excess = in_bin * (patches.labels - patches.probabilities)[:, None]
    return lambda weights: ratio(np.abs(weights @ excess).sum(axis=1), weights.sum(axis=1))


def _refitted(
    fit: Callable[[NDArray[np.bool_], Floats, Floats], float],
) -> Callable[..., Statistic]:
    """A statistic that fits the labels to the logits of the patches that have weight, row by row.

    ``fit(labels, logits, weights)`` is only asked where both classes are there.
    """

    def statistic(patches: Scored) -> Statistic:
        logits = logit(np.clip(patches.probabilities, _EPS, 1 - _EPS))

        def of_row(weights: Floats) -> float:
            kept = weights > 0
            labels = patches.labels[kept]
            if len(np.unique(labels)) < 2:
                return np.nan
            return fit(labels, logits[kept], weights[kept])

        return lambda weights: np.array([of_row(row) for row in weights])

    return statistic


def _slope(labels: NDArray[np.bool_], logits: Floats, weights: Floats) -> float:
    tumour, normal = logits[labels], logits[~labels]
    if normal.max() <= tumour.min() or tumour.max() <= normal.min():
        return np.nan  # separated: the steeper the better, without end
    spread = logits.std()  # scikit-learn's solvers want inputs of about 1
    regression = LogisticRegression(C=np.inf, solver="newton-cholesky", tol=1e-9, max_iter=200)
    regression.fit(logits[:, None] / spread, labels, weights)
    return float(regression.coef_[0, 0] / spread)


def _intercept(labels: NDArray[np.bool_], logits: Floats, weights: Floats) -> float:
    return shift_to_mean(logits, float(np.average(labels, weights=weights)), weights)


auroc = Metric("auroc", "AUROC", 1.0, "patches of both classes", _auroc)
"""Chance that a tumour patch scores above a normal one, ties counting half (Mann-Whitney)."""

average_precision = Metric(
    "average_precision", "average precision", 1.0, "tumour patches", _average_precision
)
"""Sum of precision times the step in recall; no interpolation (as scikit-learn)."""

sensitivity = Metric(
    "sensitivity", "sensitivity", 1.0, "tumour patches", _share("called_tumour", of="labels")
)
"""Share of the tumour patches called tumour."""

specificity = Metric(
    "specificity", "specificity", 1.0, "normal patches", _share("called_normal", of="normal")
)
"""Share of the normal patches called normal."""

ppv = Metric("ppv", "PPV", 1.0, "patches called tumour", _share("labels", of="called_tumour"))
"""Share of the patches called tumour that are."""

npv = Metric("npv", "NPV", 1.0, "patches called normal", _share("normal", of="called_normal"))
"""Share of the patches called normal that are."""

f1 = Metric("f1", "F1", 1.0, "patches that are tumour or called so", _f1)
"""2 TP / (2 TP + FP + FN)."""

log_loss = Metric("log_loss", "log loss", 0.0, "patches", _log_loss, scale="log")
"""Mean of −ln of the probability given to the true class, in nats."""

brier_loss = Metric("brier_loss", "Brier loss", 0.0, "patches", _brier_loss, scale="log")
"""Mean squared distance between probability and label."""

# noise within the bins adds to ECE: a small value is mostly bias, which no interval around it shows
ece = Metric("ece", "ECE", 0.0, "patches", _ece, scale=None)
"""Expected calibration error: over ``N_BINS`` equal bins of the probability, the share of patches
in the bin times |share of tumour − mean probability| there (Guo et al. 2017, for the tumour
class)."""

calibration_slope = Metric(
    "calibration_slope",
    "calibration slope",
    1.0,
    "patches of both classes that overlap in probability",
    _refitted(_slope),
    scale=None,
)
"""Slope of the logistic regression of the label on the logit of the probability (Cox 1958); below 1
the probabilities are too extreme, above 1 too timid."""

calibration_intercept = Metric(
    "calibration_intercept",
    "calibration intercept",
    0.0,
    "patches of both classes",
    _refitted(_intercept),
    scale=None,
)
"""Its intercept with the slope held at 1, "calibration in the large" (Van Calster et al. 2019):
above 0 there is more tumour than the probabilities say, below 0 less."""

OF_PROBABILITIES = (log_loss, brier_loss, ece, calibration_slope, calibration_intercept)
OF_CALLS = (sensitivity, specificity, ppv, npv, f1)
METRICS = {m.name: m for m in (auroc, average_precision, *OF_CALLS, *OF_PROBABILITIES)}
