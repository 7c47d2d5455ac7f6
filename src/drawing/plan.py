"""What each generated patch holds, decided before any is drawn.

A plan is drawn in chunks of a fixed size, each with a random generator of its own, so equal
arguments give equal pixels whichever process draws which chunk.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Subset = Literal["train", "test"]

CHUNK_PATCHES = 40

# what a patch holds; BESIDE: tumour close to the centre 32 x 32 px but not in it
NORMAL, BESIDE, TUMOUR, WHITE, BLACK = range(5)
BESIDE_FRACTION = 0.2  # of normal patches

TUMOUR_FRACTIONS = (0.2, 0.61)  # of the slides; the mean is Kaggle's
WHITE_FRACTION = 0.002
BLACK_FRACTION = 0.001

# purposes of random generators, so that no two of them yield the same numbers
PLAN, ORDER, SLIDES, SHAPES, COLOURS = range(5)


@dataclass(frozen=True)
class SubsetPlan:
    """The patches of one subset, or a chunk of them.

    Attributes
    ----------
    slide : (n,) int64
        Number of the slide, from 0.
    kind : (n,) uint8
        ``NORMAL``, ``BESIDE``, ``TUMOUR``, ``WHITE`` or ``BLACK``.
    first : int
        Position in the whole plan of this chunk's first patch.
    """

    seed: int
    subset: Subset
    n_slides: int
    slide: NDArray[np.int64]
    kind: NDArray[np.uint8]
    first: int = 0

    def __len__(self) -> int:
        return len(self.kind)

    @property
    def labels(self) -> NDArray[np.uint8]:
        """(n,) 1 where tumour reaches the centre 32 × 32 px."""
        return np.asarray(self.kind == TUMOUR, np.uint8)

    def ids(self) -> list[str]:
        """40 hex digits per patch, in no particular order."""
        names = (f"{self.seed}/{self.subset}/{self.first + i}" for i in range(len(self)))
        return [hashlib.sha1(name.encode(), usedforsecurity=False).hexdigest() for name in names]

    def slide_names(self) -> list[str]:
        """For instance ``train_slide_007``, per patch."""
        return [f"{self.subset}_slide_{slide:03d}" for slide in self.slide]

    def chunks(self) -> Iterator[SubsetPlan]:
        """The plan in pieces that are drawn independently, in order."""
        for first in range(0, len(self), CHUNK_PATCHES):
            part = slice(first, first + CHUNK_PATCHES)
            yield replace(self, slide=self.slide[part], kind=self.kind[part], first=first)

    def generator(self, purpose: int, number: int = 0) -> np.random.Generator:
        """The random generator for ``purpose``: equal arguments, equal numbers."""
        return np.random.default_rng(
            [self.seed, ("train", "test").index(self.subset), purpose, number]
        )


def plan_subset(*, seed: int, subset: Subset, n_patches: int, n_slides: int) -> SubsetPlan:
    """Divide patches among slides and decide what each patch holds.

    Slides differ in size and in their fraction of tumour; each slide of two patches or more holds
    both classes. Blank patches all come from the first slide, so that their equal pixels don't tie
    slides together.
    """
    empty = np.empty(0, np.int64)
    plan = SubsetPlan(seed, subset, n_slides, slide=empty, kind=empty.astype(np.uint8))
    rng = plan.generator(PLAN)
    # two patches each where there are enough, the rest in shares of 0.6 to 1.4
    least = min(2, n_patches // n_slides)
    shares = rng.permutation(np.linspace(0.6, 1.4, n_slides))
    ends = np.rint(np.cumsum(shares) / shares.sum() * (n_patches - least * n_slides))
    sizes = least + np.diff(ends, prepend=0).astype(np.int64)
    fractions = rng.permutation(np.linspace(*TUMOUR_FRACTIONS, n_slides))

    kinds = []
    for size, fraction in zip(sizes, fractions, strict=True):
        n_tumour = min(max(round(size * fraction), 1), size - 1)
        is_beside = rng.random(size - n_tumour) < BESIDE_FRACTION
        kinds += [np.full(n_tumour, TUMOUR), np.where(is_beside, BESIDE, NORMAL)]
    kind = np.concatenate(kinds).astype(np.uint8)
    # one normal patch at least stays as it is
    normal = np.flatnonzero(kind[: sizes[0]] == NORMAL)[1:]
    n_white = max(1, round(n_patches * WHITE_FRACTION))
    n_black = max(1, round(n_patches * BLACK_FRACTION))
    kind[normal[:n_white]] = WHITE
    kind[normal[n_white : n_white + n_black]] = BLACK

    order = rng.permutation(n_patches)
    return replace(plan, slide=np.repeat(np.arange(n_slides), sizes)[order], kind=kind[order])


def describe(plan: SubsetPlan) -> str:
    """One line for the log: patches, slides, fraction of tumour, hard and blank patches."""
    counts = np.bincount(plan.kind, minlength=5)
    return (
        f"{plan.subset} {len(plan):,} patches from {plan.n_slides:,} slides, "
        f"{plan.labels.mean():.1%} tumour, {counts[BESIDE]:,} normal with tumour close by, "
        f"{counts[WHITE]:,} white, {counts[BLACK]:,} black"
    )
