"""Generated patches: a plan of slides, labels and hard cases, and the pixels that follow it.

Equal arguments give equal pixels, whoever draws which chunk: patches are drawn in chunks of a fixed
size, each with its own random generator. (Equal on one machine: ``exp`` may differ in the last bit
between processors.)
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from src.data.cells import SIZE
from src.data.stain import Stains, draw_stains, mix_stains
from src.data.tissue import Layout, draw_tissue

Subset = Literal["train", "test"]

CHUNK_PATCHES = 40

TUMOUR_FRACTION = 0.405  # Kaggle's
TUMOUR_FRACTION_SPREAD = 0.205  # a slide's fraction lies within ± this
OUTSIDE_FRACTION = 0.2  # of normal patches: tumour near, not in the centre
FEW_FRACTION = 0.12  # of tumour patches: a few cells
CROWDING_LOGITS = (-1.7, 2.7)  # mean beside tumour, and where there is none or little
WHITE_FRACTION = 0.002
BLACK_FRACTION = 0.001

# what a patch holds
NORMAL, OUTSIDE, FEW, TUMOUR, WHITE, BLACK = range(6)

# purposes, so that no two generators are equal
_PLAN, _SLIDES, _CHUNK, _ORDER = range(4)


@dataclass(frozen=True)
class SubsetPlan:
    """The patches of one subset, before any is drawn.

    Attributes
    ----------
    slide : (n,) int64
        Number of the slide, from 0.
    kind : (n,) uint8
        ``NORMAL``, ``OUTSIDE``, ``FEW``, ``TUMOUR``, ``WHITE`` or ``BLACK``.
    """

    seed: int
    subset: Subset
    slide: NDArray[np.int64]
    kind: NDArray[np.uint8]
    n_slides: int

    def __len__(self) -> int:
        return len(self.kind)

    @property
    def labels(self) -> NDArray[np.uint8]:
        """(n,) 1 where tumour reaches the centre 32 × 32 px."""
        return np.isin(self.kind, (FEW, TUMOUR)).astype(np.uint8)

    def chunks(self) -> Iterator["Chunk"]:
        """The plan in pieces that are drawn on their own, in order."""
        for first in range(0, len(self), CHUNK_PATCHES):
            part = slice(first, first + CHUNK_PATCHES)
            yield Chunk(
                self.seed, self.subset, self.n_slides, first, self.slide[part], self.kind[part]
            )

    def patch_id(self, patch: int) -> str:
        """40 hex digits, in no order."""
        return _patch_id(self.seed, self.subset, patch)

    def slide_name(self, patch: int) -> str:
        """For instance ``train_slide_007``."""
        return f"{self.subset}_slide_{self.slide[patch]:03d}"

    def submission_order(self) -> NDArray[np.int64]:
        """The patches in the order of ``sample_submission.csv``, unlike that of the files."""
        return _generator(self.seed, self.subset, _ORDER).permutation(len(self))


@dataclass(frozen=True)
class Chunk:
    """Up to ``CHUNK_PATCHES`` patches of a plan; ``first`` is the number of the first one."""

    seed: int
    subset: Subset
    n_slides: int
    first: int
    slide: NDArray[np.int64]
    kind: NDArray[np.uint8]

    def ids(self) -> list[str]:
        """The patches' ids, as in the plan."""
        patches = range(self.first, self.first + len(self.kind))
        return [_patch_id(self.seed, self.subset, patch) for patch in patches]


@dataclass(frozen=True)
class Patches:
    """``pixels`` (n, 96, 96, 3) uint8 RGB; ``tumour`` (n, 96, 96), True on tumour cells."""

    pixels: NDArray[np.uint8]
    tumour: NDArray[np.bool_]


def plan_subset(*, seed: int, subset: Subset, n_patches: int, n_slides: int) -> SubsetPlan:
    """Share patches among slides and decide what each holds.

    Each slide of two patches or more holds both classes, in a proportion of its own. Blank patches
    (white, black) all come from the first slide, so that their equal pixels don't tie slides
    together.
    """
    rng = _generator(seed, subset, _PLAN)
    sizes = _slide_sizes(rng, n_patches=n_patches, n_slides=n_slides)
    fractions = TUMOUR_FRACTION + TUMOUR_FRACTION_SPREAD * _spread(rng, n_slides)
    slide = np.repeat(np.arange(n_slides), sizes)
    kind = np.concatenate(
        [_slide_kinds(rng, size, fraction) for size, fraction in zip(sizes, fractions, strict=True)]
    )
    _put_blanks(kind, in_first=int(sizes[0]))
    order = rng.permutation(n_patches)
    return SubsetPlan(seed, subset, slide[order], kind[order], n_slides)


def _patch_id(seed: int, subset: Subset, patch: int) -> str:
    text = f"{seed}/{subset}/{patch}"
    return hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


def _generator(seed: int, subset: Subset, purpose: int, number: int = 0) -> np.random.Generator:
    return np.random.default_rng([seed, ("train", "test").index(subset), purpose, number])


def _spread(rng: np.random.Generator, n: int) -> NDArray[np.float64]:
    """``n`` values evenly over −1 to 1, shuffled; mean 0."""
    return rng.permutation((2 * np.arange(n) + 1 - n) / max(n - 1, 1))


def _slide_sizes(rng: np.random.Generator, *, n_patches: int, n_slides: int) -> NDArray[np.int64]:
    """Patches per slide: uneven, at least 2 where ``n_patches`` allows, ``n_patches`` in all."""
    least = min(2, n_patches // n_slides)
    weights = 1 + 0.4 * _spread(rng, n_slides)
    ends = np.cumsum(weights) / weights.sum() * (n_patches - least * n_slides)
    sizes: NDArray[np.int64] = least + np.diff(np.rint(ends).astype(np.int64), prepend=0)
    return sizes


def _slide_kinds(rng: np.random.Generator, size: int, fraction: float) -> NDArray[np.uint8]:
    n_tumour = min(max(round(size * fraction), 1), size - 1)
    few = rng.random(n_tumour) < FEW_FRACTION
    outside = rng.random(size - n_tumour) < OUTSIDE_FRACTION
    return np.concatenate([np.where(outside, OUTSIDE, NORMAL), np.where(few, FEW, TUMOUR)]).astype(
        np.uint8
    )


def _put_blanks(kind: NDArray[np.uint8], *, in_first: int) -> None:
    """Turn normal patches of the first slide white or black; one at least stays as it is."""
    normal = np.flatnonzero(np.isin(kind[:in_first], (NORMAL, OUTSIDE)))[1:]
    room = len(normal)  # a third each at most, white before black
    n_white = min(max(1, round(len(kind) * WHITE_FRACTION)), (room + 2) // 3)
    n_black = min(max(1, round(len(kind) * BLACK_FRACTION)), (room + 1) // 3)
    kind[normal[:n_white]] = WHITE
    kind[normal[n_white : n_white + n_black]] = BLACK


def describe(plan: SubsetPlan) -> str:
    """One line for the log: patches, slides, share of tumour, hard cases."""
    counts = np.bincount(plan.kind, minlength=BLACK + 1)
    return (
        f"{plan.subset} {len(plan):,} patches from {plan.n_slides:,} slides, "
        f"{plan.labels.mean():.1%} tumour ({counts[FEW]:,} with a few cells only), "
        f"{counts[OUTSIDE]:,} normal beside tumour, "
        f"{counts[WHITE]:,} white, {counts[BLACK]:,} black"
    )


def draw_chunk(chunk: Chunk) -> Patches:
    """Draw the patches of a chunk, in its order."""
    rng = _generator(chunk.seed, chunk.subset, _CHUNK, chunk.first)
    looks = _draw_looks(chunk)
    tissue = draw_tissue(rng, _layout(rng, chunk, looks))
    intensity = mix_stains(tissue.haematoxylin, tissue.eosin, looks.stains.of(chunk.slide))
    pixels = _scanned(rng, intensity, looks.noise[chunk.slide])
    pixels[chunk.kind == WHITE] = 255
    pixels[chunk.kind == BLACK] = 0
    return Patches(pixels, tissue.tumour)


@dataclass(frozen=True)
class _Looks:
    """Each slide's colours, nuclei and scanner; first axis the slide."""

    stains: Stains
    lymphocyte_radius: NDArray[np.float32]
    tumour_radius: NDArray[np.float32]
    blur: NDArray[np.float32]
    noise: NDArray[np.float32]


def _draw_looks(chunk: Chunk) -> _Looks:
    rng = _generator(chunk.seed, chunk.subset, _SLIDES)

    def uniform(low: float, high: float) -> NDArray[np.float32]:
        return rng.uniform(low, high, chunk.n_slides).astype(np.float32)

    return _Looks(
        stains=draw_stains(rng, chunk.n_slides),
        lymphocyte_radius=uniform(2.5, 3.0),
        tumour_radius=uniform(5.5, 6.8),
        blur=uniform(0.03, 0.1),
        noise=uniform(1.5, 3.0),
    )


def _layout(rng: np.random.Generator, chunk: Chunk, looks: _Looks) -> Layout:
    kind, slide = chunk.kind, chunk.slide
    n = len(kind)
    region = np.where(rng.random(n) < 0.4, 2.0 * SIZE, rng.uniform(26, 65, n))
    beside = rng.uniform(18, 50, n)
    extent = np.select(
        [kind == FEW, kind == OUTSIDE], [rng.uniform(6, 16, n), beside], default=region
    )
    # tumour covers ground that is pale or crowded elsewhere: without this, colour tells the label
    crowding = rng.normal(np.where(kind == TUMOUR, *CROWDING_LOGITS), 3.0)
    return Layout(
        tumour=np.isin(kind, (OUTSIDE, FEW, TUMOUR)),
        reaches_centre=np.isin(kind, (FEW, TUMOUR)),
        extent=extent.astype(np.float32),
        crowding=crowding.astype(np.float32),
        lymphocyte_radius=looks.lymphocyte_radius[slide],
        tumour_radius=looks.tumour_radius[slide],
        blur=looks.blur[slide],
    )


def _scanned(
    rng: np.random.Generator, intensity: NDArray[np.float32], noise: NDArray[np.float32]
) -> NDArray[np.uint8]:
    grain = rng.standard_normal(intensity.shape, dtype=np.float32) * noise[:, None, None, None]
    return np.clip(np.rint(intensity + grain), 0, 255).astype(np.uint8)
