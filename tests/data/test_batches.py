"""Batches: order, views and the last, filled-up batch."""

import numpy as np
import pytest

from src.data.batches import n_batches, ordered_batches, training_batches


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

    def views(epoch):
        batches = training_batches(50, batch_size=50, n_views=8, seed=1, epoch=epoch)
        return next(batches).views.tolist()

    assert views(1) != views(2)
    assert set(views(1)) == set(range(8))
    assert all((b.views == 0).all() for b in ordered_batches(50, batch_size=8))


def test_one_view_is_the_patch_as_it_is():
    """Catches ``views: 1`` that augments all the same."""
    batches = training_batches(20, batch_size=8, n_views=1, seed=1, epoch=1)
    assert all((b.views == 0).all() for b in batches)
