"""What a search sees: a subset with both classes, never holdout."""

import numpy as np
import pytest

from src.data import dataset as labelled_module
from src.tuning.search_data import load_data, subset_of
from tests.model.support import labelled, random_patches


def test_holdout_stays_closed(monkeypatch):
    """Catches a search that looks at the patches its result is judged on."""
    opened = []

    def load(split):
        assert split != "holdout", "unreadable"
        opened.append(split)
        return labelled(random_patches(4), [0, 1, 0, 1], split=split)

    monkeypatch.setattr(labelled_module, "load_split", load)
    load_data(subset=None, seed=1)
    assert opened == ["train", "val"]


def test_a_subset_keeps_the_classes_and_the_order():
    """Catches a subset of one class, another at every start, and labels beside other patches."""
    patches = labelled(random_patches(40), [1, 0, 0, 0] * 10)
    few = subset_of(patches, 20, seed=1)
    assert len(few) == 20
    assert few.labels.sum() == 5
    assert list(few.ids) == sorted(few.ids)
    assert np.array_equal(few.labels, patches.labels[few.rows])
    assert np.array_equal(few.ids, subset_of(patches, 20, seed=1).ids)
    assert few.digest != patches.digest


@pytest.mark.parametrize("n", [40, 41])
def test_a_subset_of_all_is_all(n):
    """Catches patches drawn twice (both sides of the boundary)."""
    patches = labelled(random_patches(40), [1, 0, 0, 0] * 10)
    assert subset_of(patches, n, seed=1) is patches
