"""The threshold on the probability, chosen on val; a patch is called tumour at or above it.

To add a rule: write ``(patches, limit) -> threshold`` and name it in
``OPERATING_POINTS`` as ``evaluate.operating_point`` of ``params.yaml`` spells it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from src.evaluation.metrics import Scored, UndefinedMetric, scored
from src.system.errors import ProjectError


@dataclass(frozen=True)
class OperatingPoint:
    """What turns a logit into a decision: sigmoid(logit / temperature) >= threshold.

    ``rule`` is what chose the threshold on val, e.g. ``{"min_sensitivity": 0.95}``.
    """

    rule: Mapping[str, float]
    threshold: float
    temperature: float

    def as_json(self) -> dict[str, Any]:
        """The content of ``operating_point.json``."""
        return {
            "rule": dict(self.rule),
            "threshold": self.threshold,
            "temperature": self.temperature,
        }


def choose_threshold(
    rule: Mapping[str, float], labels: ArrayLike, probabilities: ArrayLike
) -> float:
    """The threshold that ``rule``, one entry of ``OPERATING_POINTS`` with its limit, picks.

    Raises
    ------
    ProjectError
        The rule is unknown, or there isn't exactly one.
    UndefinedMetric
        The patches can't meet it.
    """
    if len(rule) != 1 or not set(rule) <= set(OPERATING_POINTS):
        raise ProjectError(
            f"evaluate.operating_point must be one of {', '.join(OPERATING_POINTS)}; "
            f"got {', '.join(rule) or 'none'}"
        )
    ((name, limit),) = rule.items()
    return OPERATING_POINTS[name](scored(labels, probabilities), limit)


def _reaching_sensitivity(patches: Scored, min_sensitivity: float) -> float:
    """The highest threshold at which the sensitivity is at least ``min_sensitivity``."""
    tumour = np.sort(patches.scores[patches.labels])[::-1]
    if not len(tumour):
        raise UndefinedMetric(
            "min_sensitivity needs tumour patches in val; got 0: raise split.val_fraction"
        )
    # compared as the metric computes it: a product with the count would round 0.07 × 100 above 7
    sensitivities = np.arange(1, len(tumour) + 1) / len(tumour)
    return float(tumour[np.argmax(sensitivities >= min_sensitivity)])


OPERATING_POINTS: dict[str, Callable[[Scored, float], float]] = {
    "min_sensitivity": _reaching_sensitivity,
}
