"""Drawing of tissue, many patches at once: amounts of stain and where tumour is.

Lengths are px of a 96 × 96 px patch at about 1 µm/px, coordinates (x, y) = (column, row). Arrays
have the patch as first axis. Every random choice comes from the generator passed in, so equal
arguments draw equal pixels.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from src.data.cells import (
    LARGEST_BODY,
    SIZE,
    Cells,
    Float,
    draw_round_nuclei,
    draw_spindle_nuclei,
    draw_tumour_nuclei,
    each,
    lattice,
    value_at,
)

CENTRE = slice(32, 64)  # rows and columns that decide the label
_MIDDLE = (SIZE - 1) / 2


@dataclass(frozen=True)
class Layout:
    """What each of ``n`` patches holds.

    Attributes
    ----------
    tumour : (n,) bool
        Whether tumour is anywhere in the patch.
    reaches_centre : (n,) bool
        Whether one tumour cell at least lies in the centre; False keeps all of them out of it.
    extent : (n,)
        Radius in px, about the first tumour cell, within which tumour cells grow.
    crowding : (n,)
        Logit of the share of ground that lymphocytes take, outside tumour.
    lymphocyte_radius, tumour_radius : (n,)
        Mean radius of nuclei in px, 2.6 to 3.4 and 4.6 to 6.4 for H&E at this scale.
    blur : (n,)
        Weight of each neighbour in the smoothing of optics, 0 to 0.25.
    """

    tumour: NDArray[np.bool_]
    reaches_centre: NDArray[np.bool_]
    extent: Float
    crowding: Float
    lymphocyte_radius: Float
    tumour_radius: Float
    blur: Float

    def __len__(self) -> int:
        return len(self.tumour)


@dataclass(frozen=True)
class Tissue:
    """Amounts of haematoxylin and eosin (n, 96, 96), ≥ 0, about 1 in a dark nucleus or dense
    fibre; ``tumour`` (n, 96, 96), True where a pixel belongs to a tumour cell."""

    haematoxylin: Float
    eosin: Float
    tumour: NDArray[np.bool_]


def draw_tissue(rng: np.random.Generator, layout: Layout) -> Tissue:
    """Stroma with fibroblasts and lymphocytes, holes of fat and tears, and tumour where told."""
    anchor = _anchors(rng, layout)
    solid = _solid(rng, layout, anchor)
    crowding = _crowding(rng, layout)
    direction = rng.uniform(0, np.pi, len(layout)).astype(np.float32)
    nests = _tumour_cells(rng, layout, anchor, solid)
    nuclei, bodies = draw_tumour_nuclei(rng, len(layout), nests, layout.tumour_radius)
    lymphocytes = _lymphocytes(rng, layout, crowding, solid, bodies)
    fibroblasts = _fibroblasts(rng, crowding, solid, bodies)
    small_nuclei = np.maximum(
        draw_round_nuclei(rng, len(layout), lymphocytes, layout.lymphocyte_radius),
        draw_spindle_nuclei(rng, fibroblasts, direction),
    )
    return _compose(
        rng,
        layout,
        fibres=_fibres(rng, direction),
        crowding=crowding,
        solid=solid,
        bodies=bodies,
        tumour_nuclei=nuclei,
        small_nuclei=small_nuclei,
    )


def _compose(
    rng: np.random.Generator,
    layout: Layout,
    *,
    fibres: Float,
    crowding: Float,
    solid: Float,
    bodies: Float,
    tumour_nuclei: Float,
    small_nuclei: Float,
) -> Tissue:
    n = len(layout)
    grain = smooth_noise(rng, n, scale_px=1.4)
    wisps = smooth_noise(rng, n, scale_px=3)
    clumps = smooth_noise(rng, n, scale_px=7)
    small = small_nuclei * (1 + 0.12 * grain)
    large = tumour_nuclei * (1 + 0.34 * grain + 0.12 * wisps)
    nuclei = np.maximum(small, large)
    covered = np.clip(np.maximum(small_nuclei, tumour_nuclei) * 1.5, 0, 1)
    inside = np.clip(bodies * 5, 0, 1)
    level = each(rng.uniform(0.15, 0.57, n).astype(np.float32))
    ground = level + 0.05 * (grain + clumps)
    cytoplasm = 0.5 - 0.2 * bodies + 0.06 * (grain + clumps)
    stroma = fibres + crowding * (ground - fibres)
    eosin = (inside * cytoplasm + (1 - inside) * stroma * solid) * (1 - 0.45 * covered)
    base = 0.05 + 0.1 * np.maximum(crowding, inside)
    there = np.maximum(inside, solid)
    haematoxylin = nuclei + base * there * (1 + 0.3 * clumps)
    strength = np.exp(rng.normal(0, 0.2, (n, 2))).astype(np.float32)
    return Tissue(
        haematoxylin=_smoothed(np.maximum(haematoxylin, 0) * each(strength[:, 0]), layout.blur),
        eosin=_smoothed(np.maximum(eosin, 0) * each(strength[:, 1]), layout.blur),
        tumour=bodies > 0,
    )


def smooth_noise(rng: np.random.Generator, n: int, *, scale_px: float) -> Float:
    """Gaussian noise (n, 96, 96), mean 0, variance 1, smooth over about ``scale_px``."""
    first, weights = _spline(scale_px)
    n_knots = int(first[-1]) + 4
    noise = rng.standard_normal((n, n_knots, n_knots), dtype=np.float32)
    # four products a pixel, not a matrix product: BLAS threads fight over cores in each process
    for _ in range(2):
        blended = noise[:, first] * weights[0][:, None]
        for k in (1, 2, 3):
            blended += noise[:, first + k] * weights[k][:, None]
        noise = blended.swapaxes(1, 2)
    return noise


@cache
def _spline(scale_px: float) -> tuple[NDArray[np.intp], Float]:
    """Cubic B-spline: each pixel's first knot (96,) and the weights of four knots (4, 96), scaled
    to unit length, so that variance stays 1."""
    at = np.arange(SIZE) / scale_px
    first = at.astype(np.intp)
    t = at - first
    basis = np.stack([(1 - t) ** 3, 4 - 6 * t**2 + 3 * t**3, 1 + 3 * (t + t**2 - t**3), t**3])
    return first, (basis / np.linalg.norm(basis, axis=0)).astype(np.float32)


def _pixels() -> tuple[Float, Float]:
    y, x = np.mgrid[:SIZE, :SIZE].astype(np.float32)
    return x, y


def _crowding(rng: np.random.Generator, layout: Layout) -> Float:
    """Share of ground taken by lymphocytes, 0 to 1: from scattered in stroma to a full crowd."""
    field = smooth_noise(rng, len(layout), scale_px=28)
    share: Float = 1 / (1 + np.exp(-2.2 * field - each(layout.crowding)))
    return share


def _fibres(rng: np.random.Generator, direction: Float) -> Float:
    """Eosin of wavy collagen along ``direction``: bundles that split and fade, pale between."""
    n = len(direction)
    x, y = _pixels()
    cos, sin = each(np.cos(direction)), each(np.sin(direction))
    across = y * cos - x * sin + 6 * smooth_noise(rng, n, scale_px=24)
    waves = np.zeros((n, SIZE, SIZE), np.float32)
    for shortest, longest in ((3.5, 5), (6, 10), (12, 24)):
        length = rng.uniform(shortest, longest, n).astype(np.float32)
        phase = 2.2 * smooth_noise(rng, n, scale_px=11)
        waves += np.sin(2 * np.float32(np.pi) * across / each(length) + phase) * (
            0.6 + 0.5 * smooth_noise(rng, n, scale_px=9)
        )
    depth = rng.uniform(0.12, 0.32, n).astype(np.float32)
    level = rng.uniform(0.35, 0.6, n).astype(np.float32)
    uneven = 0.1 * smooth_noise(rng, n, scale_px=16) + 0.08 * smooth_noise(rng, n, scale_px=2)
    return each(level) + each(depth) * np.tanh(waves) + uneven


def _solid(rng: np.random.Generator, layout: Layout, anchor: Float) -> Float:
    """1 in tissue, 0 in fat cells, which spare the first tumour cell, and in tears."""
    n = len(layout)
    solid = np.ones((n, SIZE, SIZE), np.float32)
    fat = np.flatnonzero(rng.random(n) < 0.16)
    for _ in range(3):
        solid[fat] *= _outside_circle(rng, anchor[fat])
    torn = np.flatnonzero(rng.random(n) < 0.16)
    field = np.abs(smooth_noise(rng, len(torn), scale_px=18))
    solid[torn] *= np.clip((field - 0.3) * 6, 0, 1)
    return solid


def _outside_circle(rng: np.random.Generator, anchor: Float) -> Float:
    n = len(anchor)
    at = rng.uniform(-10, SIZE + 10, (n, 2)).astype(np.float32)
    to_anchor = np.hypot(*(at - anchor).T) - LARGEST_BODY
    radius = np.clip(np.minimum(rng.uniform(8, 30, n), to_anchor), 0, None).astype(np.float32)
    x, y = _pixels()
    away = np.hypot(x - each(at[:, 0]), y - each(at[:, 1]))
    outside: Float = np.clip(away - each(radius), 0, 1)
    return outside


def _anchors(rng: np.random.Generator, layout: Layout) -> Float:
    """(x, y) of the first tumour cell: in the centre, or so far out that none of it gets there."""
    n = len(layout)
    inside = rng.uniform(CENTRE.start + 2, CENTRE.stop - 3, (n, 2))
    ring = _off_centre(LARGEST_BODY)
    far = rng.uniform(ring, SIZE / 2 - 3, n)
    along = rng.uniform(-1, 1, n) * far
    sides = np.stack([far * rng.choice((-1, 1), n), along], axis=-1)
    outside = np.where(rng.random((n, 1)) < 0.5, sides, sides[:, ::-1]) + _MIDDLE
    return np.where(layout.reaches_centre[:, None], inside, outside).astype(np.float32)


def _off_centre(body: float) -> float:
    """How far from the middle, in the greater of x and y, a body of that radius misses the
    centre."""
    return (CENTRE.stop - CENTRE.start) / 2 + body + 0.5


def _tumour_cells(rng: np.random.Generator, layout: Layout, anchor: Float, solid: Float) -> Cells:
    pitch = layout.tumour_radius * rng.uniform(2.1, 2.7, len(layout)).astype(np.float32)
    cells = lattice(rng, pitch, jitter=0.55)
    wavy = value_at(10 * smooth_noise(rng, len(layout), scale_px=20), cells)
    away = np.hypot(cells.x - anchor[cells.patch, 0], cells.y - anchor[cells.patch, 1])
    keep_off = np.maximum(np.abs(cells.x - _MIDDLE), np.abs(cells.y - _MIDDLE))
    grown = (
        layout.tumour[cells.patch]
        & (away + wavy < layout.extent[cells.patch])
        & (away > 0.85 * pitch[cells.patch])  # room for the first cell
        & (layout.reaches_centre[cells.patch] | (keep_off > _off_centre(LARGEST_BODY)))
        & (value_at(solid, cells) > 0.5)
    )
    first = np.flatnonzero(layout.tumour)
    grown_cells = cells.where(grown)
    return Cells(
        np.concatenate([grown_cells.patch, first]),
        np.concatenate([grown_cells.x, anchor[first, 0]]),
        np.concatenate([grown_cells.y, anchor[first, 1]]),
    )


def _lymphocytes(
    rng: np.random.Generator, layout: Layout, crowding: Float, solid: Float, bodies: Float
) -> Cells:
    """From touching to scattered; a few among tumour cells."""
    spacing = rng.uniform(2.05, 3.1, len(layout)).astype(np.float32)
    cells = lattice(rng, layout.lymphocyte_radius * spacing, jitter=0.6)
    present = rng.random(len(cells)) < np.clip(value_at(crowding, cells) ** 1.5, 0.02, 0.93)
    infiltrating = rng.random(len(cells)) < 0.04
    in_tumour = value_at(bodies, cells) > 0
    return cells.where(present & (value_at(solid, cells) > 0.6) & (~in_tumour | infiltrating))


def _fibroblasts(rng: np.random.Generator, crowding: Float, solid: Float, bodies: Float) -> Cells:
    """Scattered in stroma."""
    cells = lattice(rng, np.full(len(crowding), 16, np.float32), jitter=0.9)
    present = rng.random(len(cells)) < 0.5 * (1 - value_at(crowding, cells))
    return cells.where(present & (value_at(solid, cells) > 0.9) & (value_at(bodies, cells) == 0))


def _smoothed(values: Float, blur: Float) -> Float:
    """Each pixel mixed with its two neighbours, along rows and then columns."""
    side, middle = each(blur), each(1 - 2 * blur)
    for _ in range(2):
        padded = np.pad(values, ((0, 0), (1, 1), (0, 0)), mode="edge")
        values = middle * values + side * (padded[:, :-2] + padded[:, 2:])
        values = values.swapaxes(1, 2)
    return values
