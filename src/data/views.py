"""The 8 flips and rotations of the square (the group D4): the augmentation that keeps a label true.

Each view maps the centre square onto itself, so a patch's label holds for all 8. The first views
are the mirror images, then the quarter turns, so that ``views: 2`` or ``4`` are useful choices.
"""

import numpy as np
from numpy.typing import NDArray

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
