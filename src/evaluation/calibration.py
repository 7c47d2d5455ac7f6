"""From logit to a probability that means what it says: a scale and a shift, fitted on val."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from src.evaluation.metrics import (
    N_BINS,
    Floats,
    UndefinedMetric,
    bin_of,
    scored,
    shift_to_mean,
)

SCALES = (0.01, 100.0)
"""Where a scale is kept, so that no ranking changes; at an end the logits tell nothing of val."""


class Calibration(NamedTuple):
    """probability = sigmoid(scale * logit + shift)."""

    scale: float
    shift: float


@dataclass(frozen=True)
class ReliabilityCurve:
    """The bins of [0, 1] that hold patches: mean probability, share of tumour, patches."""

    mean_probability: Floats
    tumour_share: Floats
    n_patches: NDArray[np.int64]


def fit_calibration(labels: ArrayLike, logits: ArrayLike) -> Calibration:
    """The logistic regression of label on logit, of Platt's soft targets (Platt 1999).

    Class weights move all logits by the log of their ratio, which only a shift takes back. The
    targets are (n₁ + 1) / (n₁ + 2) for tumour and 1 / (n₀ + 2) for normal rather than 1 and 0: a
    val split that the model separates would otherwise ask for certainty on every patch. A scale
    outside ``SCALES`` is replaced by the nearer end, with the shift that fits best there.

    Raises
    ------
    UndefinedMetric
        The patches are of one class.
    """
    patches = scored(labels, logits)
    targets = _platt_targets(patches.labels)
    # scikit-learn takes no soft targets: each patch counts as tumour and as normal, in shares
    regression = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(
        np.tile(patches.scores, 2)[:, None],
        np.repeat([1, 0], len(targets)),
        np.concatenate([targets, 1 - targets]),
    )
    fitted = Calibration(float(regression.coef_[0, 0]), float(regression.intercept_[0]))
    scale = float(np.clip(fitted.scale, *SCALES))
    if scale == fitted.scale:
        return fitted
    return Calibration(scale, shift_to_mean(scale * patches.scores, float(targets.mean())))


def at_bound(scale: float) -> bool:
    """Whether the fit ran into an end of ``SCALES``."""
    return scale in SCALES


def probability(logits: ArrayLike, *, scale: float = 1.0, shift: float = 0.0) -> Floats:
    """sigmoid(scale * logit + shift), (n,) in [0, 1]; 1 and 0 are no calibration."""
    probabilities: Floats = expit(scale * np.asarray(logits, dtype=np.float64) + shift)
    return probabilities


def reliability_curve(labels: ArrayLike, probabilities: ArrayLike) -> ReliabilityCurve:
    """Mean probability against share of tumour, in the bins that ECE uses."""
    patches = scored(labels, probabilities)
    bins = bin_of(patches.probabilities)
    n_patches = np.bincount(bins, minlength=N_BINS)
    held = n_patches > 0
    return ReliabilityCurve(
        mean_probability=_bin_sums(bins, patches.probabilities)[held] / n_patches[held],
        tumour_share=_bin_sums(bins, patches.labels)[held] / n_patches[held],
        n_patches=n_patches[held],
    )


def _bin_sums(bins: NDArray[np.intp], values: NDArray[np.generic]) -> Floats:
    sums: Floats = np.bincount(bins, values.astype(np.float64), N_BINS).astype(np.float64)
    return sums


def _platt_targets(labels: NDArray[np.bool_]) -> Floats:
    n_tumour = int(labels.sum())
    n_normal = len(labels) - n_tumour
    if not n_tumour or not n_normal:
        raise UndefinedMetric(
            f"calibration needs patches of both classes; got {n_normal} normal and {n_tumour} "
            "tumour: raise split.val_fraction"
        )
    return np.where(labels, (n_tumour + 1) / (n_tumour + 2), 1 / (n_normal + 2))
