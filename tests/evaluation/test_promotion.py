"""Promotion on both sides of each boundary, with every reason recorded."""

import json
from dataclasses import replace

import pytest

from src.evaluation.intervals import Difference
from src.evaluation.looks import Look
from src.evaluation.promotion import PROMOTION_RULES, Evidence, decide

BEATS = Difference(0.2, 0.1, 0.3, 0.975)
GOOD = Evidence(
    to_baseline=BEATS,
    to_champion=BEATS,
    margin=0.0,
    n_groups={"normal": 3, "tumour": 2},
    min_groups=2,
    look=Look(1, "h" * 64),
    reload_error=0.0,
    golden_error=0.0,
)
# rule → evidence that it alone refuses
BAD = {
    "files_verified": {"not_judged": {"files_verified": "sha256 mismatch"}},
    "reloaded": {"reload_error": 2e-4},
    "golden_batch": {"golden_error": 2e-3},
    "beats_baseline": {"to_baseline": Difference(0.2, 0.0, 0.3, 0.975)},
    "not_worse_than_champion": {"to_champion": Difference(0.0, 0.0, 0.0, 0.975)},
    "minimum_groups": {"n_groups": {"normal": 3, "tumour": 1}},
    "not_rejected": {"rejected": "colours look wrong"},
}


@pytest.mark.parametrize("rule", PROMOTION_RULES)
def test_every_rule_can_hold_and_can_refuse_alone(rule):
    """The contract of a rule: catches one that is never applied, or takes others down with it."""
    good, bad = decide(GOOD), decide(replace(GOOD, **BAD[rule]))
    assert good.promote
    assert not bad.promote
    assert good.checks[rule].held
    assert bad.failed == [rule]
    for check in (good.checks[rule], bad.checks[rule]):
        assert check.reason
        assert check.allowed


@pytest.mark.parametrize("rule", PROMOTION_RULES)
def test_what_can_not_be_judged_does_not_hold(rule):
    """Catches 'unknown' read as 'fine'."""
    decision = decide(replace(GOOD, not_judged={rule: "the file is gone"}))
    assert decision.failed == [rule]
    assert decision.checks[rule].reason == "the file is gone"


def test_only_rules_about_what_it_is_can_not_be_forced():
    """Catches a force that promotes tampered files, or can't promote at all."""
    assert decide(replace(GOOD, reload_error=1.0)).failed_integrity == ["reloaded"]
    assert decide(replace(GOOD, rejected="x", to_baseline=None)).failed_integrity == []


@pytest.mark.parametrize(("low", "promoted"), [(1e-9, True), (0.0, False), (-0.1, False)])
def test_first_version_must_beat_the_baseline(low, promoted):
    """An interval that touches 0 is no evidence."""
    first = replace(GOOD, to_baseline=Difference(0.2, low, 0.3, 0.975), to_champion=None)
    decision = decide(first)
    assert decision.promote is promoted
    assert decision.checks["not_worse_than_champion"].reason == "no champion yet"


@pytest.mark.parametrize(
    ("low", "margin", "promoted"),
    [
        (0.01, 0.0, True),
        (0.0, 0.0, False),  # equal: no reason to change the champion
        (-0.01, 0.0, False),
        (0.0, 0.01, True),  # equal, and the margin allows it
        (-0.009, 0.01, True),
        (-0.01, 0.01, False),
    ],
)
def test_interval_to_the_champion_lies_above_minus_the_margin(low, margin, promoted):
    """Catches the margin's sign, and the value in place of the interval's bound."""
    decision = decide(
        replace(GOOD, to_champion=Difference(low, low, low + 0.1, 0.975), margin=margin)
    )
    assert decision.promote is promoted


@pytest.mark.parametrize(("fewest", "held"), [(5, True), (4, False)])
def test_the_class_with_fewer_groups_counts(fewest, held):
    groups = {"normal": 9, "tumour": fewest}
    assert decide(replace(GOOD, n_groups=groups, min_groups=5)).promote is held


@pytest.mark.parametrize("rule", ["reloaded", "golden_batch"])
def test_nan_is_not_equal_enough(rule):
    field = {"reloaded": "reload_error", "golden_batch": "golden_error"}[rule]
    decision = decide(replace(GOOD, **{field: float("nan")}))
    assert decision.failed == [rule]
    json.dumps(decision.as_table(), allow_nan=False)


def test_reasons_name_values_and_what_is_allowed():
    bad = Difference(-0.02, -0.05, 0.01, 0.975)
    decision = decide(replace(GOOD, to_champion=bad, margin=0.01))
    assert decision.reasons[3:6] == [
        "beats the colour baseline: AUROC +0.200 (97.5 % interval +0.100 to +0.300); model 1 "
        "judged on this archive",
        "may be worse than the champion on the same patches: AUROC -0.020 (97.5 % interval "
        "-0.050 to +0.010), the interval must be above -0.01; model 1 judged on this archive",
        "of the holdout groups 3 hold normal patches, 2 hold tumour patches",
    ]
