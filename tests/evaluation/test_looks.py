"""What many looks at one archive may cost."""

import pytest

from src.evaluation.looks import Look


@pytest.mark.parametrize(
    ("number", "confidence"), [(1, 0.975), (2, 1 - 0.05 / 6), (10, 1 - 0.05 / 110)]
)
def test_confidence_of_a_look(number, confidence):
    assert Look(number, "h").confidence(0.95) == pytest.approx(confidence)


def test_errors_of_all_looks_stay_within_the_promise():
    """α divided by the number of the look alone adds up to 4 α after 30 looks."""
    spent = sum(1 - Look(k, "h").confidence(0.95) for k in range(1, 1000))
    assert 0.049 < spent < 0.05
