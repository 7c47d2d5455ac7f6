"""Class weights against numbers worked out by hand and against scikit-learn."""

import numpy as np
import pytest
from sklearn.utils.class_weight import compute_class_weight

from src import params
from src.model.class_weights import OneClassOnly, class_weights

LABELS = np.array([0] * 6 + [1] * 4, np.uint8)


def test_balanced_weights_by_hand():
    """Catches swapped classes: 6 normal, 4 tumour give 10/12 and 10/8."""
    weights = class_weights(LABELS, "balanced")
    assert weights.as_dict() == pytest.approx({"normal": 10 / 12, "tumour": 10 / 8})


def test_balanced_weights_equal_scikit_learns():
    """Catches another normalisation."""
    expected = compute_class_weight("balanced", classes=np.array([0, 1]), y=LABELS)
    weights = class_weights(LABELS, "balanced")
    assert [weights.normal, weights.tumour] == pytest.approx(expected.tolist())


def test_balanced_weights_average_to_one():
    """Catches weights that change the learning rate's meaning."""
    assert class_weights(LABELS, "balanced").per_patch(LABELS).mean() == pytest.approx(1.0)


def test_none_and_explicit():
    """Catches a setting that is read but not used."""
    assert class_weights(LABELS, "none").per_patch(LABELS).tolist() == [1.0] * 10
    explicit = class_weights(LABELS, params.ClassWeights(normal=1, tumour=3))
    assert explicit.per_patch(LABELS).tolist() == [1.0] * 6 + [3.0] * 4


def test_one_class_is_refused():
    """Catches a division by zero that becomes an infinite weight."""
    with pytest.raises(OneClassOnly, match="10 normal, 0 tumour"):
        class_weights(np.zeros(10, np.uint8), "balanced")
