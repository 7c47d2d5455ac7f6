"""What is odd about a patch: found by rule, counted and kept, never a reason to drop it.

``blank_white`` and ``blank_black`` are glass or scanner background, ``duplicate_of:<id>`` has the
same pixels as another patch, ``quarantined`` could not be read (test patches only).
"""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

BLANK_WHITE = "blank_white"
BLANK_BLACK = "blank_black"
DUPLICATE_OF = "duplicate_of:"
QUARANTINED = "quarantined"

# levels of 255; tissue has a standard deviation above 12 in its most varied channel
_BLANK_MAX_STD = 6.0
_WHITE_MIN_MEAN = 200.0
_BLACK_MAX_MEAN = 60.0


def blank_flag(mean: NDArray[np.float64], std: NDArray[np.float64]) -> str:
    """``blank_white``, ``blank_black`` or '' from one patch's (3,) channel moments, 0 to 255.

    A blank patch varies by less than 6 levels (standard deviation) in every channel; it is white
    from a mean of 200 in every channel up, black up to a mean of 60.
    """
    if (std >= _BLANK_MAX_STD).any():
        return ""
    if (mean >= _WHITE_MIN_MEAN).all():
        return BLANK_WHITE
    return BLANK_BLACK if (mean <= _BLACK_MAX_MEAN).all() else ""


def duplicate_flags(ids: Sequence[str], digests: Sequence[str]) -> list[str]:
    """``duplicate_of:<first id>`` where an earlier patch has the same digest, else ''.

    ``digests`` that are '' (unread patches) are nobody's duplicate.
    """
    first: dict[str, str] = {}
    flags = []
    for patch_id, digest in zip(ids, digests, strict=True):
        original = first.setdefault(digest, patch_id) if digest else patch_id
        flags.append("" if original == patch_id else f"{DUPLICATE_OF}{original}")
    return flags


def join_flags(flags: Iterable[str]) -> str:
    """The flags that are not '' as one comma-separated text; '' if none."""
    return ",".join(flag for flag in flags if flag)
