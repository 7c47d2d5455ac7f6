"""Which patches make up each batch, and in which view: a pure function of (seed, epoch)."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

VIEW_BLOCK = 64
"""Patches that share their view within an epoch: neighbours in the order of ids, which is random.

The activation cache computes whole blocks, so an epoch asks it for each block in one view only.
"""


@dataclass(frozen=True)
class Batch:
    """Positions within a split, of fixed length ``batch_size``.

    The last batch of a pass is filled up with repeats, so that a compiled step meets one shape
    only; ``counted`` is 1 for the patches that belong to the pass and 0 for the repeats.

    Attributes
    ----------
    positions : (batch_size,) int64
    views : (batch_size,) int64 in 0 … 7
    counted : (batch_size,) float32, 0 or 1
    """

    positions: NDArray[np.int64]
    views: NDArray[np.int64]
    counted: NDArray[np.float32]

    @property
    def n_counted(self) -> int:
        """Patches of this batch that belong to the pass."""
        return int(self.counted.sum())


def training_batches(
    n: int, *, batch_size: int, n_views: int, seed: int, epoch: int
) -> Iterator[Batch]:
    """Every one of ``n`` patches once, globally shuffled, each in its view of this epoch."""
    order = np.random.default_rng([seed, epoch]).permutation(n)
    views = epoch_views(n, n_views=n_views, seed=seed, epoch=epoch)[order]
    yield from _cut(order, views, batch_size)


def epoch_views(n: int, *, n_views: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The view (n,) of each patch in an epoch, counted from 1; the same within a block of 64.

    Each block goes through all ``n_views`` in random order before one comes again.
    """
    cycle, turn = divmod(epoch - 1, n_views)
    rng = np.random.default_rng([seed, cycle, n_views])
    orders = np.tile(np.arange(n_views), (n_batches(n, VIEW_BLOCK), 1))
    return np.repeat(rng.permuted(orders, axis=1)[:, turn], VIEW_BLOCK)[:n]


def ordered_batches(n: int, *, batch_size: int, view: int = 0) -> Iterator[Batch]:
    """Every one of ``n`` patches once, in order, all in the same view."""
    yield from _cut(np.arange(n), np.full(n, view), batch_size)


def n_batches(n: int, batch_size: int) -> int:
    """Batches in one pass over ``n`` patches."""
    return -(-n // batch_size)


def _cut(order: NDArray[np.int64], views: NDArray[np.int64], batch_size: int) -> Iterator[Batch]:
    for start in range(0, len(order), batch_size):
        taken = np.arange(start, start + batch_size)
        counted = (taken < len(order)).astype(np.float32)
        taken %= len(order)
        yield Batch(positions=order[taken], views=views[taken], counted=counted)
