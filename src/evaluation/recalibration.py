"""How probabilities would have to be bent to fit the labels: logistic recalibration (Cox 1958).

Patches of nearly the same logit stand together in one point, so that a bootstrap resample costs a
few Newton steps over a thousand points rather than over all patches.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from src.evaluation.curves import Floats

MAX_POINTS = 1024  # up to twice as many patches are fitted exactly; 33,000 to 4 decimals
_MAX_STEPS = 50
_SMALL_STEP = 1e-8  # Newton squares its error in each step: after this one nothing is left
_LONGEST_STEP = 2.0  # where all chances are near 0 or 1, Newton's own step overshoots
_LARGEST = 1e4  # beyond it the classes are separated and there is no fit


@dataclass(frozen=True)
class Points:
    """n patches as k points of rising logit.

    ``logits`` (k,) is the mean of each point's patches; ``order`` (n,) sorts the patches,
    ``starts`` (k,) is where each point begins, ``labels`` (n,) is 1.0 for tumour in that order.
    """

    logits: Floats
    order: NDArray[np.intp]
    starts: NDArray[np.intp]
    labels: Floats

    def sums(self, weights: Floats) -> tuple[Floats, Floats]:
        """Weight of the tumour patches, and of all, at each point: (b, n) → (b, k) twice."""
        ordered = np.take(weights, self.order, axis=1)
        everything = np.add.reduceat(ordered, self.starts, axis=1)
        ordered *= self.labels
        return np.add.reduceat(ordered, self.starts, axis=1), everything


def points_of(labels: NDArray[np.bool_], probabilities: Floats) -> Points:
    """The patches by logit, at most ``2 * MAX_POINTS`` points."""
    logits = logit(probabilities)
    order = np.argsort(logits, kind="stable")
    starts = np.arange(0, len(logits), max(1, len(logits) // MAX_POINTS))
    sizes = np.diff(starts, append=len(logits))
    return Points(
        logits=np.add.reduceat(logits[order], starts) / sizes,
        order=order,
        starts=starts,
        labels=labels[order].astype(np.float64),
    )


def logit(probabilities: Floats) -> Floats:
    """ln(p / (1 − p)); 0 and 1 count as the nearest numbers between."""
    eps = np.finfo(np.float64).eps
    inside = np.clip(probabilities, eps, 1 - eps)
    logits: Floats = np.log(inside / (1 - inside))
    return logits


def fit_line(points: Points, weights: Floats) -> Floats:
    """(b, 2) intercept and slope of the logistic regression of labels on logits.

    ``weights`` is (b, n), one row a fit. NaN where the weighted patches are of one class or the
    classes are separated.
    """
    powers = np.stack([points.logits**power for power in range(3)], axis=1)  # (k, 3)

    def step(fits: Floats, tumour: Floats, everything: Floats) -> Floats:
        chance = _sigmoid(fits[:, :1] + fits[:, 1:] * points.logits)
        g_0, g_1 = ((tumour - everything * chance) @ powers[:, :2]).T
        h_00, h_01, h_11 = ((everything * chance * (1 - chance)) @ powers).T
        steps = np.stack([h_11 * g_0 - h_01 * g_1, h_00 * g_1 - h_01 * g_0], axis=1)
        return np.asarray(steps / (h_00 * h_11 - h_01**2)[:, None])

    return _newton(step, np.array([0.0, 0.0]), *points.sums(weights))


def fit_shift(points: Points, weights: Floats) -> Floats:
    """(b,) intercept of the same regression with the slope held at 1; NaN of one class."""

    def step(fits: Floats, tumour: Floats, everything: Floats) -> Floats:
        chance = _sigmoid(fits + points.logits)
        gradient = (tumour - everything * chance).sum(axis=1, keepdims=True)
        curvature = (everything * chance * (1 - chance)).sum(axis=1, keepdims=True)
        return np.asarray(np.clip(gradient / curvature, -_LONGEST_STEP, _LONGEST_STEP))

    return _newton(step, np.array([0.0]), *points.sums(weights))[:, 0]


def _newton(
    step: Callable[[Floats, Floats, Floats], Floats],
    start: Floats,
    tumour: Floats,
    everything: Floats,
) -> Floats:
    """(b, p) fits from ``start`` (p,); rows that don't converge are NaN."""
    fits = np.tile(start, (len(tumour), 1))
    n_tumour, n_all = tumour.sum(axis=1), everything.sum(axis=1)
    is_open = (n_tumour > 0) & (n_tumour < n_all)
    fits[~is_open] = np.nan
    for _ in range(_MAX_STEPS):
        if not is_open.any():
            break
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            steps = step(fits[is_open], tumour[is_open], everything[is_open])
        fits[is_open] += steps
        fits[np.abs(fits).max(axis=1) > _LARGEST] = np.nan
        is_open[is_open] = np.abs(steps).max(axis=1) > _SMALL_STEP
        is_open &= np.isfinite(fits).all(axis=1)
    fits[is_open] = np.nan
    return fits


def _sigmoid(x: Floats) -> Floats:
    # tanh neither overflows nor needs two branches
    return np.asarray(0.5 * np.tanh(0.5 * x) + 0.5)
