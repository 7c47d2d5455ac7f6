"""The threshold that each rule picks, on both sides of its boundary."""

import numpy as np
import pytest

from src.evaluation.metrics import UndefinedMetric, specificity
from src.evaluation.operating_point import OPERATING_POINTS, choose_threshold
from src.system.errors import ProjectError

TUMOUR_20 = np.arange(1, 21) / 20  # 0.05 … 1.0, all tumour


def picks(score):
    """The threshold where that score is picked and the next lower one is far away."""
    return pytest.approx(score - 1e-4, abs=1e-7)


def _choose(min_sensitivity, labels, probabilities):
    return choose_threshold({"min_sensitivity": min_sensitivity}, labels, probabilities)


@pytest.mark.parametrize(("asked", "threshold"), [(0.95, 0.10), (0.9500001, 0.05), (0.05, 1.0)])
def test_highest_threshold_that_reaches_it(asked, threshold):
    """19 of 20 is 0.95 exactly and enough; a hair more asks for all 20."""
    assert _choose(asked, np.ones(20), TUMOUR_20) == picks(threshold)


@pytest.mark.parametrize("names", OPERATING_POINTS)
def test_float32_takes_no_val_patch_to_the_other_side(names):
    """The served model answers in float32: a threshold that is the float64 score of a val patch
    calls that patch normal every other time."""
    rng = np.random.default_rng(0)
    rule = dict.fromkeys(names, 0.8)
    for _ in range(100):
        labels, probabilities = rng.integers(2, size=200), rng.beta(0.2, 0.2, 200)
        threshold = choose_threshold(rule, labels, probabilities)
        served = probabilities.astype(np.float32).astype(np.float64)
        np.testing.assert_array_equal(served >= threshold, probabilities >= threshold)


def test_product_that_rounds_up_does_not_cost_a_patch():
    """0.07 × 100 is 7.000000000000001: its ceiling is 8."""
    probabilities = np.arange(1, 101) / 100
    assert _choose(0.07, np.ones(100), probabilities) == picks(probabilities[-7])


def test_no_tumour_is_refused():
    with pytest.raises(UndefinedMetric, match="needs tumour patches in val; got 0"):
        _choose(0.95, [0, 0], [0.1, 0.2])


@pytest.mark.parametrize("rule", [{}, {"min_luck": 0.5}, {"min_sensitivity": 0.9, "other": 1}])
def test_rule_that_is_not_exactly_one_known_is_refused(rule):
    with pytest.raises(ProjectError, match="must be one of min_sensitivity"):
        choose_threshold(rule, [0, 1], [0.1, 0.2])


@pytest.mark.parametrize("names", OPERATING_POINTS)
def test_every_rule_picks_a_probability_whatever_the_row_order(names):
    rng = np.random.default_rng(0)
    labels, probabilities = rng.integers(2, size=50), rng.random(50)
    order = rng.permutation(50)
    rule = dict.fromkeys(names, 0.8)
    threshold = choose_threshold(rule, labels, probabilities)
    assert 0 <= threshold <= 1
    assert threshold == choose_threshold(rule, labels[order], probabilities[order])


@pytest.mark.parametrize(("asked", "threshold"), [(0.95, 1.0), (0.949, 0.95), (0.5, 0.5)])
def test_lowest_threshold_that_reaches_the_specificity(asked, threshold):
    """20 normal patches at 0.05 … 1: below 1.0 lie 19 of 20, exactly 0.95; below 0.95, 18."""
    labels = np.r_[np.zeros(20), 1]
    probabilities = np.r_[TUMOUR_20, threshold]
    chosen = choose_threshold({"min_specificity": asked}, labels, probabilities)
    reached = [t for t in TUMOUR_20 if specificity(labels, probabilities, threshold=t) >= asked]
    assert chosen == picks(min(reached))


def test_specificity_that_calls_nothing_tumour_is_refused():
    """A threshold above every probability meets any specificity, and finds nothing."""
    with pytest.raises(UndefinedMetric, match="would call no val patch tumour"):
        choose_threshold({"min_specificity": 0.9}, [0, 0, 1], [0.2, 0.7, 0.7])


@pytest.mark.parametrize(
    ("cost_fn", "cost_fp", "threshold"), [(1.0, 1.0, 0.6), (1.0, 3.0, 0.9), (3.0, 1.0, 0.3)]
)
def test_least_cost_by_hand(cost_fn, cost_fp, threshold):
    """Costs of misses and false alarms swapped.

    Tumour 0.9, 0.6, 0.6, 0.3; normal 0.7, 0.5, 0.4, 0.1. At 0.9: 3 missed, 0 false alarms; at
    0.6: 1 and 1; at 0.3: 0 and 3.
    """
    labels = [1, 1, 1, 1, 0, 0, 0, 0]
    probabilities = [0.9, 0.6, 0.6, 0.3, 0.7, 0.5, 0.4, 0.1]
    rule = {"cost_fn": cost_fn, "cost_fp": cost_fp}
    assert choose_threshold(rule, labels, probabilities) == picks(threshold)


def test_of_equal_costs_the_one_that_finds_more():
    """Missing one of two at 0.9 costs as much as the false alarm at 0.3."""
    rule = {"cost_fn": 1.0, "cost_fp": 1.0}
    assert choose_threshold(rule, [1, 0, 1], [0.9, 0.5, 0.3]) == picks(0.3)
