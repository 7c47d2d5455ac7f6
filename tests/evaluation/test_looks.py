"""What many looks at one holdout may cost, and what counts as the same holdout."""

import pandas as pd
import pytest

from src.evaluation.looks import Look, holdout_sha256


@pytest.mark.parametrize(
    ("number", "confidence"), [(1, 0.975), (2, 1 - 0.05 / 6), (10, 1 - 0.05 / 110)]
)
def test_confidence_of_a_look(number, confidence):
    assert Look(number, "h").confidence(0.95) == pytest.approx(confidence)


def test_errors_of_all_looks_stay_within_the_promise():
    """α divided by the number of the look alone adds up to 4 α after 30 looks."""
    spent = sum(1 - Look(k, "h").confidence(0.95) for k in range(1, 1000))
    assert 0.049 < spent < 0.05


def test_holdout_is_known_by_its_patches_and_labels():
    """Rows in another order counted as a new holdout, or a corrected label as the old one."""
    rows = pd.DataFrame({"sha256": ["a", "b", "c"], "label": [0, 1, 0]})
    digest = holdout_sha256(rows)
    assert holdout_sha256(rows.sample(frac=1, random_state=1)) == digest
    assert holdout_sha256(rows.assign(label=[0, 1, 1])) != digest
    assert holdout_sha256(rows.iloc[:2]) != digest
