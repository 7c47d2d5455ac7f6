"""The 8 views of D4."""

import numpy as np
import pytest

from src.data.views import N_VIEWS, apply_view, apply_views


def _patch() -> np.ndarray:
    return np.arange(4 * 4 * 3, dtype=np.uint8).reshape(1, 4, 4, 3)


def test_views_are_the_eight_different_symmetries():
    """Catches a view listed twice or missing: D4 has 8 elements, no two alike."""
    images = {apply_view(_patch(), view).tobytes() for view in range(N_VIEWS)}
    assert len(images) == 8


def test_view_zero_changes_nothing():
    """Catches validation patches that are flipped by accident."""
    np.testing.assert_array_equal(apply_view(_patch(), 0), _patch())


@pytest.mark.parametrize("view", range(N_VIEWS))
def test_centre_square_stays_the_centre_square(view):
    """Catches an augmentation that moves tumour out of the labelled centre (FIELD.md, trap 1)."""
    patch = np.zeros((1, 96, 96, 1), np.uint8)
    patch[:, 32:64, 32:64] = 1
    np.testing.assert_array_equal(apply_view(patch, view), patch)


def test_each_patch_gets_its_own_view():
    """Catches one view used for the whole batch."""
    patches = np.repeat(_patch(), N_VIEWS, axis=0)
    turned = apply_views(patches, np.arange(N_VIEWS))
    for view in range(N_VIEWS):
        np.testing.assert_array_equal(turned[view], apply_view(_patch(), view)[0])
