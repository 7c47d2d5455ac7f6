"""From logit to a probability that means what it says: one temperature, fitted on val."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from src.evaluation.curves import Floats
from src.evaluation.metrics import N_BINS, UndefinedMetric, bin_of, scored

TEMPERATURES = (0.01, 100.0)
"""Where a temperature is looked for; one at an end says that the logits tell nothing of val."""


@dataclass(frozen=True)
class ReliabilityCurve:
    """The bins of [0, 1] that hold patches: mean probability, share of tumour, patches."""

    mean_probability: Floats
    tumour_share: Floats
    n_patches: NDArray[np.int64]


def fit_temperature(labels: ArrayLike, logits: ArrayLike) -> float:
    """The T > 0 for which sigmoid(logit / T) has the least log loss (Guo et al. 2017).

    The targets are Platt's (1999), (n₁ + 1) / (n₁ + 2) for tumour and 1 / (n₀ + 2) for normal
    rather than 1 and 0: a val split that the model separates would otherwise ask for T = 0,
    certainty on every patch. With many patches they are 1 and 0.

    Raises
    ------
    UndefinedMetric
        The patches are of one class.
    """
    from scipy.optimize import minimize_scalar

    patches = scored(labels, logits)
    targets = _platt_targets(patches.labels)

    def loss(log_temperature: float) -> float:
        scaled = patches.scores / np.exp(log_temperature)
        return float(np.mean(np.logaddexp(0.0, scaled) - targets * scaled))

    low, high = TEMPERATURES
    found = minimize_scalar(
        loss, bounds=(np.log(low), np.log(high)), method="bounded", options={"xatol": 1e-8}
    )
    return float(np.exp(found.x))


def at_bound(temperature: float) -> bool:
    """Whether the fit ran into an end of ``TEMPERATURES``."""
    low, high = TEMPERATURES
    return temperature < 1.01 * low or temperature > 0.99 * high


def probability(logits: ArrayLike, *, temperature: float) -> Floats:
    """sigmoid(logit / temperature), (n,) in [0, 1]; 1 is no calibration."""
    scaled = np.asarray(logits, dtype=np.float64) / temperature
    probabilities: Floats = np.exp(-np.logaddexp(0.0, -scaled))
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
            f"a temperature needs patches of both classes; got {n_normal} normal and {n_tumour} "
            "tumour: raise split.val_fraction"
        )
    return np.where(labels, (n_tumour + 1) / (n_tumour + 2), 1 / (n_normal + 2))
