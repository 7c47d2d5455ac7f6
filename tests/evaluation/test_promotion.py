"""Promotion on both sides of each boundary, with the reason recorded."""

import subprocess
import sys

import pytest

from src.evaluation.intervals import Difference
from src.evaluation.promotion import PROMOTION_RULES, decide

BEATS = Difference(0.2, 0.1, 0.3)


@pytest.mark.parametrize(("low", "promoted"), [(1e-9, True), (0.0, False), (-0.1, False)])
def test_first_version_must_beat_the_baseline(low, promoted):
    """An interval that touches 0 is no evidence."""
    decision = decide(Difference(0.2, low, 0.3), None, margin=0.0)
    assert decision.promote is promoted
    assert decision.checks["beats_baseline"].held is promoted
    assert decision.reasons[1] == "no champion yet"


@pytest.mark.parametrize(
    ("value", "margin", "promoted"),
    [
        (0.01, 0.0, True),
        (0.0, 0.0, True),
        (-1e-9, 0.0, False),
        (-0.01, 0.01, True),
        (-0.010001, 0.01, False),
    ],
)
def test_not_below_the_champion_by_more_than_the_margin(value, margin, promoted):
    """The margin's sign, or the interval's bound in place of the value."""
    decision = decide(BEATS, Difference(value, value - 0.1, value + 0.1), margin=margin)
    assert decision.promote is promoted


def test_better_than_champion_is_not_enough():
    """Any in place of all."""
    decision = decide(Difference(0.0, -0.1, 0.1), Difference(0.1, 0.05, 0.2), margin=0.0)
    assert not decision.promote


def test_reasons_name_values_and_what_is_allowed():
    decision = decide(BEATS, Difference(-0.02, -0.05, 0.01), margin=0.01)
    assert decision.reasons == [
        "beats the colour baseline: AUROC +0.200 (+0.100 to +0.300)",
        "is below the champion on the same patches: AUROC -0.020 (-0.050 to +0.010), "
        "allowed >= -0.01",
    ]


def test_every_rule_is_applied_and_recorded():
    decision = decide(BEATS, BEATS, margin=0.0)
    assert list(decision.checks) == list(PROMOTION_RULES)
    assert all(check.held and check.reason and check.allowed for check in decision.checks.values())


def test_needs_no_heavy_library():
    """A promotion is decided where neither scikit-learn nor TensorFlow is wanted."""
    code = (
        "import sys, src.evaluation.promotion; "
        "print({'sklearn', 'scipy', 'tensorflow', 'mlflow', 'matplotlib'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
