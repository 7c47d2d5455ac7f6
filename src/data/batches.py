"""Which patches make up each batch, and in which view: a pure function of (seed, epoch).

Views are the 8 flips and rotations of the square (the group D4): the augmentation that keeps a
label true, because each maps the centre square onto itself. The first are the mirror images, then
the quarter turns, so that ``views: 2`` or ``4`` are useful choices.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

VIEW_BLOCK = 64
"""Patches that share their view within an epoch: neighbours in the order of ids, which is random.

The activation cache computes whole blocks, so an epoch asks it for each block in one view only.
"""

N_VIEWS = 8

# (transpose rows and columns first, then flip rows, then flip columns)
_VIEWS = (
    (False, False, False),  # as it is
    (False, False, True),  # mirrored left-right
    (False, True, False),  # mirrored top-bottom
    (False, True, True),  # half turn
    (True, True, False),  # quarter turn counter-clockwise
    (True, False, True),  # quarter turn clockwise
    (True, False, False),  # mirrored at the diagonal
    (True, True, True),  # mirrored at the other diagonal
)


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


def view_steps(view: int) -> tuple[bool, bool, bool]:
    """Whether ``view`` transposes rows and columns, then flips rows, then flips columns."""
    return _VIEWS[view]


def apply_view(patches: NDArray[np.uint8], view: int) -> NDArray[np.uint8]:
    """Turn or flip every patch of ``patches`` (n, s, s, c) by ``view`` in 0 … 7; 0 changes nothing.

    Returns a numpy view of the same memory.
    """
    transpose, flip_rows, flip_columns = _VIEWS[view]
    if transpose:
        patches = patches.transpose(0, 2, 1, 3)
    if flip_rows:
        patches = patches[:, ::-1]
    if flip_columns:
        patches = patches[:, :, ::-1]
    return patches


def apply_views(patches: NDArray[np.uint8], views: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Apply ``views[i]`` to ``patches[i]``; a new array of the same shape (n, s, s, c)."""
    turned = np.empty_like(patches)
    for view in np.unique(views):
        chosen = views == view
        turned[chosen] = apply_view(patches[chosen], int(view))
    return turned
