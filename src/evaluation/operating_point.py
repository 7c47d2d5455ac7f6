"""The threshold on the probability, chosen on val; a patch is called tumour at or above it.

A rule picks the score of a val patch, the lowest that is to be called tumour. The threshold lies a
little below it: served probabilities are float32, and rounding must not take that very patch to
the other side.

To add a rule: write ``(patches, **limits) -> score`` and name it in ``OPERATING_POINTS`` by its
limits, as ``evaluate.operating_point`` of ``params.yaml`` spells them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from src.evaluation.metrics import Floats, Scored, UndefinedMetric, scored
from src.system.errors import ProjectError

_FARTHEST_BELOW = 1e-4  # as far as a served probability may lie from the evaluated one


@dataclass(frozen=True)
class OperatingPoint:
    """What turns a logit into a decision: sigmoid(scale * logit + shift) >= threshold.

    The content of ``operating_point.json``. ``rule`` is what chose the threshold on val, e.g.
    ``{"min_sensitivity": 0.95}``; ``tta`` says whether the logit is the mean over the 8 views.
    """

    rule: Mapping[str, float]
    threshold: float
    scale: float
    shift: float
    tta: bool = False


def choose_threshold(
    rule: Mapping[str, float], labels: ArrayLike, probabilities: ArrayLike
) -> float:
    """The threshold that ``rule``, one entry of ``OPERATING_POINTS`` with its limits, picks.

    Probabilities that are equal in float32 are called together. The threshold lies half-way between
    the score picked and the next lower one of val, at most 1e-4 below the former.

    Raises
    ------
    ProjectError
        The rule is unknown, or there isn't exactly one.
    UndefinedMetric
        The patches can't meet it.
    """
    names = tuple(sorted(rule))
    if names not in OPERATING_POINTS:
        allowed = ", ".join(" with ".join(limits) for limits in OPERATING_POINTS)
        raise ProjectError(
            f"evaluate.operating_point must be one of {allowed}; got {', '.join(rule) or 'none'}"
        )
    served = np.asarray(probabilities, dtype=np.float32)
    patches = scored(labels, served)
    return _below(OPERATING_POINTS[names](patches, **rule), patches.scores)


def _below(picked: float, scores: Floats) -> float:
    """Half-way from the score picked to the next lower one, or nearer to it."""
    lower = scores[scores < picked].max(initial=0.0)
    return float(max((lower + picked) / 2, picked - _FARTHEST_BELOW))


def _reaching_sensitivity(patches: Scored, *, min_sensitivity: float) -> float:
    """The highest score at which the sensitivity is at least ``min_sensitivity``."""
    tumour = np.sort(patches.scores[patches.labels])[::-1]
    if not len(tumour):
        raise UndefinedMetric(
            "min_sensitivity needs tumour patches in val; got 0: raise split.val_fraction"
        )
    # compared as the metric computes it: a product with the count would round 0.07 × 100 above 7
    sensitivities = np.arange(1, len(tumour) + 1) / len(tumour)
    return float(tumour[np.argmax(sensitivities >= min_sensitivity)])


def _reaching_specificity(patches: Scored, *, min_specificity: float) -> float:
    """The lowest score at which the specificity is at least ``min_specificity``.

    At least one patch is called tumour.
    """
    thresholds = np.unique(patches.scores)
    normal = np.sort(patches.scores[~patches.labels])
    if not len(normal):
        raise UndefinedMetric(
            "min_specificity needs normal patches in val; got 0: raise split.val_fraction"
        )
    specificities = np.searchsorted(normal, thresholds, side="left") / len(normal)
    reached = specificities >= min_specificity
    if not reached.any():
        raise UndefinedMetric(
            f"min_specificity {min_specificity:g} would call no val patch tumour: the highest "
            f"probability is shared by {1 - specificities[-1]:.1%} of the normal patches; "
            "lower it, or improve the model"
        )
    return float(thresholds[np.argmax(reached)])


def _least_cost(patches: Scored, *, cost_fn: float, cost_fp: float) -> float:
    """The score with the least ``cost_fn`` × missed tumour + ``cost_fp`` × false alarms.

    Counted on the patches, not derived from the probabilities (Elkan 2001: cost_fp / (cost_fp +
    cost_fn)), so that it holds where they are off. Of equal costs the lowest score, which
    finds more tumour.
    """
    thresholds = np.unique(patches.scores)
    tumour = np.sort(patches.scores[patches.labels])
    normal = np.sort(patches.scores[~patches.labels])
    if not len(tumour) or not len(normal):
        raise UndefinedMetric(
            f"costs need patches of both classes in val; got {len(normal)} normal and "
            f"{len(tumour)} tumour: raise split.val_fraction"
        )
    missed = np.searchsorted(tumour, thresholds, side="left")
    false_alarms = len(normal) - np.searchsorted(normal, thresholds, side="left")
    return float(thresholds[np.argmin(cost_fn * missed + cost_fp * false_alarms)])


OPERATING_POINTS: dict[tuple[str, ...], Callable[..., float]] = {
    ("min_sensitivity",): _reaching_sensitivity,
    ("min_specificity",): _reaching_specificity,
    ("cost_fn", "cost_fp"): _least_cost,
}
