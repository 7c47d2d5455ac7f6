"""Batches: order, views and the last, filled-up batch."""

from __future__ import annotations

import numpy as np
import pytest

from src.data.batches import (
    N_VIEWS,
    VIEW_BLOCK,
    apply_view,
    apply_views,
    epoch_views,
    n_batches,
    ordered_batches,
    training_batches,
)


def _counted(batches):
    return np.concatenate([b.positions[: b.n_counted] for b in batches])


@pytest.mark.parametrize(("n", "batch_size"), [(10, 4), (8, 4), (3, 4), (1, 4)])
def test_every_patch_counts_exactly_once(n, batch_size):
    """Catches a dropped or doubled tail when the batch size doesn't divide n."""
    batches = list(ordered_batches(n, batch_size=batch_size))
    assert _counted(batches).tolist() == list(range(n))
    assert len(batches) == n_batches(n, batch_size)
    assert {len(b.positions) for b in batches} == {batch_size}


def test_epochs_differ_and_repeat_for_the_same_seed():
    """Catches one order for every epoch, and an order that depends on more than (seed, epoch)."""

    def order(seed, epoch):
        batches = training_batches(50, batch_size=8, n_views=8, seed=seed, epoch=epoch)
        return _counted(batches).tolist()

    assert order(1, 1) == order(1, 1)
    assert order(1, 1) != order(1, 2)
    assert order(1, 1) != order(2, 1)
    assert sorted(order(1, 1)) == list(range(50))


def test_training_views_change_between_epochs_and_validation_views_dont():
    """Catches augmentation that is cached, and a validation set that is augmented."""
    views = [epoch_views(10_000, n_views=8, seed=1, epoch=epoch) for epoch in (1, 2)]
    assert (views[0] != views[1]).all()
    assert set(views[0]) == set(range(8))
    assert all((b.views == 0).all() for b in ordered_batches(50, batch_size=8))


def test_every_block_meets_all_views_before_one_comes_again():
    """Catches views drawn with replacement, which pay for the cache and see fewer pictures."""
    cycles = np.array([epoch_views(200, n_views=4, seed=1, epoch=e) for e in range(1, 9)])
    for cycle in (cycles[:4], cycles[4:]):
        assert (np.sort(cycle, axis=0) == np.arange(4)[:, None]).all()
    assert (cycles[:4] != cycles[4:]).any()
    assert (cycles[:, :VIEW_BLOCK] == cycles[:, :1]).all()


def test_a_patch_has_the_view_of_its_epoch_wherever_the_shuffle_puts_it():
    """Catches views that follow the order of the batch instead of the patch."""
    views = epoch_views(200, n_views=8, seed=3, epoch=2)
    for batch in training_batches(200, batch_size=32, n_views=8, seed=3, epoch=2):
        assert (batch.views == views[batch.positions]).all()


def _patch() -> np.ndarray:
    return np.arange(4 * 4 * 3, dtype=np.uint8).reshape(1, 4, 4, 3)


def test_views_are_the_eight_different_symmetries():
    """Catches a view listed twice or missing: D4 has 8 elements, no two alike."""
    images = {apply_view(_patch(), view).tobytes() for view in range(N_VIEWS)}
    assert len(images) == 8


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
