"""Where nuclei are and what outline they have: small round lymphocytes, large uneven tumour nuclei.

Lengths are px at about 1 µm/px. Places are complex numbers, x + iy from the middle of the patch:
``abs`` is a distance and a product is a turn. Arrays have the patch, or the nucleus, as first axis.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from src.drawing.plan import BESIDE, TUMOUR, SubsetPlan
from src.patch import CENTRE_PX, SIZE_PX

Floats = NDArray[np.float32]
Places = NDArray[np.complex128]

_CORNER = (SIZE_PX - 1) / 2 * (1 + 1j)  # from the first pixel to the middle of the patch
_CENTRE_REACH = (
    CENTRE_PX / 2
)  # from the middle of the patch to the sides of the square that decides the label
_FARTHEST = 105  # lattices reach as far from their middle: wherever it is, to the last nucleus seen


@dataclass(frozen=True)
class NucleusType:
    """How nuclei of one type look.

    Attributes
    ----------
    radius : px, the median
    size_spread : standard deviation of the radius' logarithm
    stretch, dent : how far from a circle an outline may be, as shares of the radius
    window : px from its middle within which a nucleus is drawn
    """

    radius: float
    size_spread: float
    stretch: float
    dent: float
    window: int


LYMPHOCYTE = NucleusType(radius=3.4, size_spread=0.12, stretch=0.12, dent=0.03, window=7)
TUMOUR_CELL = NucleusType(radius=5.0, size_spread=0.18, stretch=0.3, dent=0.1, window=12)


def nuclear_depths(
    rng: np.random.Generator, chunk: SubsetPlan, coverage: Floats, scale: Floats
) -> tuple[Floats, Floats]:
    """Depth of each pixel in lymphocytes and in tumour nuclei, both (n, 96, 96).

    Depth is 1 in the middle of a nucleus, 0 at its outline, −1 at twice that distance and beyond.

    Parameters
    ----------
    coverage : (n,) share of the patch that nuclei of either type are to cover, about
    scale : (n,) factor of all radii
    """
    n = len(chunk)
    is_beside, is_tumour = chunk.kind == BESIDE, chunk.kind == TUMOUR
    # a nest of tumour, from a few cells to the whole patch: a disc around the centre or beside it
    nest_radius = rng.uniform(np.where(is_beside, 30, 12), 70)
    away = np.where(is_beside, nest_radius + 20, rng.uniform(0, 0.5, n) * nest_radius)
    nest = away * np.exp(2j * np.pi * rng.random(n))
    nest_radius[~is_beside & ~is_tumour] = 0

    # one nucleus per pitch² px covers the same share of the patch, whatever the type's radius
    small = _lattice(rng, LYMPHOCYTE.radius * scale * np.sqrt(np.pi / coverage))
    large = _lattice(rng, TUMOUR_CELL.radius * scale * np.sqrt(np.pi / coverage))
    is_small = np.abs(small - nest[:, None]) >= nest_radius[:, None]
    is_large = np.abs(large - nest[:, None]) < nest_radius[:, None]
    is_large[:, large.shape[1] // 2] = is_tumour  # one nucleus at least is in the centre square
    # beside the centre means that not a pixel of tumour is in it
    is_large &= ~is_beside[:, None] | (_reach(large) > _CENTRE_REACH + TUMOUR_CELL.window)
    return (
        _draw(rng, LYMPHOCYTE, small, is_small, scale),
        _draw(rng, TUMOUR_CELL, large, is_large, scale),
    )


def _reach(place: Places) -> NDArray[np.float64]:
    """Half the side of the square around the middle of the patch that just reaches ``place``."""
    return np.maximum(np.abs(place.real), np.abs(place.imag))


def _lattice(rng: np.random.Generator, pitch: Floats) -> Places:
    """(n, k) places, one per ``pitch``² px: a hexagonal lattice, jittered, turned and shifted.

    The place in the middle of the k lies anywhere in the centre square.
    """
    n = len(pitch)
    # rows of a hexagonal lattice of spacing 1 are √¾ apart
    half = int(np.ceil(_FARTHEST / pitch.min() / np.sqrt(0.75)))
    row, column = np.mgrid[-half : half + 1, -half : half + 1].reshape(2, -1)
    grid = column + 0.5 * (row % 2) + 1j * np.sqrt(0.75) * row
    jittered = grid + rng.uniform(-0.3, 0.3, (n, len(grid), 2)) @ (1, 1j)
    turn = np.exp(2j * np.pi * rng.random((n, 1)))
    place = jittered * turn * pitch[:, None] / np.sqrt(np.sqrt(0.75))
    shift = 0.8 * _CENTRE_REACH * (rng.uniform(-1, 1, (n, 1, 2)) @ (1, 1j))
    return np.asarray(place - place[:, [place.shape[1] // 2]] + shift)


def _draw(
    rng: np.random.Generator,
    kind: NucleusType,
    lattice: Places,
    is_present: NDArray[np.bool_],
    scale: Floats,
) -> Floats:
    """Depth (n, 96, 96) in the nuclei at ``lattice`` (n, k) that are present; where several meet,
    the largest."""
    patch, index = np.nonzero(is_present & (_reach(lattice) < SIZE_PX / 2 + kind.window))
    place, m = lattice[patch, index], len(patch)
    radius = kind.radius * scale[patch] * np.exp(rng.normal(0, kind.size_spread, m))
    # of random size and direction, complex like the places
    stretch = rng.uniform(0, kind.stretch, m) * np.exp(2j * np.pi * rng.random(m))
    dent = rng.uniform(0, kind.dent, m) * np.exp(2j * np.pi * rng.random(m))

    # (m, k, k): pixels of a square window around each nucleus, seen from its middle, in radii
    offset = np.arange(-kind.window, kind.window + 1)
    pixel = np.rint(place + _CORNER)  # column + i · row
    z = _each(pixel - _CORNER - place) + (offset + 1j * offset[:, None]).astype(np.complex64)
    z /= _each(radius)
    # |z| = 1 is a circle, |z + stretch · z̄| = 1 an ellipse, and z̄² gives it three blunt corners
    mirrored = z.conj()
    z += mirrored * (_each(stretch) + _each(dent) * mirrored)
    depth = 1 - np.sqrt(z.real**2 + z.imag**2)  # np.abs takes longer

    # a canvas with room for every window, flattened: maximum.at takes one index per pixel
    pad = 2 * kind.window + 1
    side = SIZE_PX + 2 * pad
    canvas = np.full(len(lattice) * side * side, -1, np.float32)
    first = (patch * side + pixel.imag + pad) * side + pixel.real + pad
    window = offset[:, None] * side + offset
    index = first.astype(np.intp)[:, None, None] + window
    np.maximum.at(canvas, index.ravel(), depth.ravel())
    return canvas.reshape(-1, side, side)[:, pad:-pad, pad:-pad]


def _each(values: NDArray[Any]) -> NDArray[np.complex64]:
    """(m,) → (m, 1, 1), to meet (m, rows, columns)."""
    return values.astype(np.complex64)[:, None, None]
