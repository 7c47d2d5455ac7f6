"""Nuclei and cell bodies, drawn one over the other, many patches at once.

Lengths are px, coordinates (x, y) = (column, row) of a 96 × 96 px patch. Arrays per cell have the
cell as first axis; ``Cells.patch`` says whose it is.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float32]

SIZE = 96
LARGEST_BODY = 10.0  # radius of a tumour cell with its cytoplasm
_MIDDLE = (SIZE - 1) / 2
_MARGIN = 12  # drawn around the patch, so that cells may cross its edge
_CELLS_AT_ONCE = 1024  # bounds memory and keeps temporaries in the processor's cache


@dataclass(frozen=True)
class Cells:
    """The middles of ``m`` cells: index of the patch, x and y; may lie just outside the patch."""

    patch: NDArray[np.intp]
    x: Float
    y: Float

    def __len__(self) -> int:
        return len(self.patch)

    def where(self, keep: NDArray[np.bool_]) -> "Cells":
        """The cells for which ``keep`` (m,) is True."""
        return Cells(self.patch[keep], self.x[keep], self.y[keep])

    def batches(self) -> list[tuple[slice, "Cells"]]:
        """The cells a thousand at a time, each time with their places in arrays per cell."""
        slices = [slice(i, i + _CELLS_AT_ONCE) for i in range(0, len(self), _CELLS_AT_ONCE)]
        return [(s, Cells(self.patch[s], self.x[s], self.y[s])) for s in slices]


def lattice(rng: np.random.Generator, pitch: Float, *, jitter: float) -> Cells:
    """Cells about ``pitch`` (n,) px apart: a turned hexagonal lattice, each cell displaced."""
    n = len(pitch)
    reach = (SIZE / 2 + _MARGIN) * np.sqrt(2)
    half = int(np.ceil(reach / pitch.min() / np.sqrt(0.75)))
    row, column = np.mgrid[-half : half + 1, -half : half + 1].reshape(2, -1)
    grid = np.stack([column + 0.5 * (row % 2), row * np.sqrt(0.75)], axis=-1)
    places = grid + rng.uniform(-jitter / 2, jitter / 2, (n, len(grid), 2))
    places = places * pitch[:, None, None]
    angle = rng.uniform(0, 2 * np.pi, (n, 1))
    x = places[..., 0] * np.cos(angle) - places[..., 1] * np.sin(angle) + _MIDDLE
    y = places[..., 0] * np.sin(angle) + places[..., 1] * np.cos(angle) + _MIDDLE
    in_reach = (np.abs(x - _MIDDLE) < SIZE / 2 + 8) & (np.abs(y - _MIDDLE) < SIZE / 2 + 8)
    patch, index = np.nonzero(in_reach)
    return Cells(patch, x[patch, index].astype(np.float32), y[patch, index].astype(np.float32))


def value_at(field: Float, cells: Cells) -> Float:
    """``field`` (n, 96, 96) at each cell; beyond the edge, the value at the edge."""
    row = np.clip(np.rint(cells.y), 0, SIZE - 1).astype(np.intp)
    column = np.clip(np.rint(cells.x), 0, SIZE - 1).astype(np.intp)
    return field[cells.patch, row, column]


def each(value: Float) -> Float:
    """(n,) → (n, 1, 1), to meet (n, rows, columns)."""
    return value[:, None, None]


def draw_round_nuclei(rng: np.random.Generator, n: int, cells: Cells, radius: Float) -> Float:
    """Haematoxylin (n, 96, 96) of small round nuclei of mean ``radius`` (n,), dark or pale."""
    m = len(cells)
    radii = radius[cells.patch] * rng.normal(1, 0.09, m)
    stretch = np.exp(rng.normal(0, 0.1, m))
    axes = np.stack([radii * stretch, radii / stretch], axis=-1).astype(np.float32)
    lobes = rng.normal(0, 0.05, (m, 2)).astype(np.float32)
    angle = rng.uniform(0, np.pi, m).astype(np.float32)
    darkness = _darkness(rng, n, cells, mean=1.09, spread=0.25)
    paleness = rng.uniform(0.1, 0.6, n).astype(np.float32)[cells.patch]
    canvas = _Canvas(n)
    for batch, some in cells.batches():
        window = canvas.window(some, reach=5)
        along, across = _turned(window, angle[batch])
        rho = _relative(along / each(axes[batch, 0]), across / each(axes[batch, 1]), lobes[batch])
        edge = np.clip((1 - rho) * each(axes[batch, 1]) + 0.5, 0, 1)
        density = 1 - each(paleness[batch]) * (1 - rho)
        canvas.lay(window, edge * density * each(darkness[batch]))
    return canvas.patches()


def draw_spindle_nuclei(rng: np.random.Generator, cells: Cells, direction: Float) -> Float:
    """Haematoxylin (n, 96, 96) of thin dark nuclei along ``direction`` (n,), an angle in rad."""
    n, m = len(direction), len(cells)
    length = rng.uniform(3.5, 7, m).astype(np.float32)
    width = rng.uniform(1.0, 1.8, m).astype(np.float32)
    angle = (direction[cells.patch] + rng.normal(0, 0.25, m)).astype(np.float32)
    darkness = _darkness(rng, n, cells, mean=1.0, spread=0.2)
    canvas = _Canvas(n)
    for batch, some in cells.batches():
        window = canvas.window(some, reach=8)
        along, across = _turned(window, angle[batch])
        rho = np.hypot(along / each(length[batch]), across / each(width[batch]))
        edge = np.clip((1 - rho) * each(width[batch]) + 0.4, 0, 1)
        canvas.lay(window, edge * each(darkness[batch]))
    return canvas.patches()


def draw_tumour_nuclei(
    rng: np.random.Generator, n: int, cells: Cells, radius: Float
) -> tuple[Float, Float]:
    """Haematoxylin (n, 96, 96) of large uneven nuclei, and the cells' bodies (n, 96, 96).

    A nucleus has a dark rim, coarse pale chromatin within and up to two nucleoli. A body is 1 in
    the middle of its cell and 0 from its edge on, with a crease between neighbours.
    """
    m = len(cells)
    radii = np.clip(radius[cells.patch] * np.exp(rng.normal(0, 0.15, m)), 3.8, 7.5)
    radii = radii.astype(np.float32)
    body = np.clip(radii * 1.35 + 1, None, LARGEST_BODY)
    stretch = np.exp(rng.normal(0, 0.14, m)).astype(np.float32)
    angle = rng.uniform(0, 2 * np.pi, m).astype(np.float32)
    lobes = rng.normal(0, (0.09, 0.07), (m, 2)).astype(np.float32)
    darkness = _darkness(rng, n, cells, mean=1.13, spread=0.25)
    paleness = np.clip(rng.normal(0.5, 0.14, n), 0.15, 0.75).astype(np.float32)[cells.patch]
    nucleoli = rng.uniform(-0.45, 0.45, (2, m, 2)).astype(np.float32)
    strength = (rng.uniform(0.35, 0.8, (m, 2)) * (1, 0.6)).astype(np.float32)
    nuclei, bodies = _Canvas(n), _Canvas(n)
    for batch, some in cells.batches():
        window = nuclei.window(some, reach=11)
        along, across = _turned(window, angle[batch])
        along, across = along / each(stretch[batch]), across * each(stretch[batch])
        rho = _relative(along, across, lobes[batch]) / each(radii[batch])
        edge = np.clip((1 - rho) * each(radii[batch]) + 0.5, 0, 1)
        rim = np.clip(1 - np.abs(rho - 0.86) * 3.2, 0, 1)
        density = 1 - each(paleness[batch]) * (1 - rim)
        for k, place in enumerate(nucleoli):
            at = place[batch] * radii[batch, None]
            away2 = (along - each(at[:, 0])) ** 2 + (across - each(at[:, 1])) ** 2
            density += each(strength[batch, k]) * np.exp(-away2 / 1.8)
        nuclei.lay(window, edge * density * each(darkness[batch]))
        bodies.lay(window, np.clip(1 - np.hypot(window.dx, window.dy) / each(body[batch]), 0, 1))
    return nuclei.patches(), bodies.patches()


def _darkness(
    rng: np.random.Generator, n: int, cells: Cells, *, mean: float, spread: float
) -> Float:
    """Haematoxylin per nucleus: varies between patches and, less, between cells."""
    of_patch = mean * np.exp(rng.normal(0, spread, n))
    of_cell = np.exp(rng.normal(0, 0.12, len(cells)))
    return (of_patch[cells.patch] * of_cell).astype(np.float32)


def _relative(along: Float, across: Float, lobes: Float) -> Float:
    """Distance divided by an uneven outline: 1 + lobes₂ · cos 2φ + lobes₃ · sin 3φ."""
    away: Float = np.maximum(np.hypot(along, across), np.float32(1e-3))
    cos, sin = along / away, across / away
    double = 2 * cos * cos - 1
    triple = sin * (3 - 4 * sin * sin)
    outline: Float = 1 + each(lobes[:, 0]) * double + each(lobes[:, 1]) * triple
    return away / outline


@dataclass(frozen=True)
class _Window:
    """Pixels around each of some cells: offsets from the cell's middle (cells, k, k) and places in
    the flattened canvas."""

    dx: Float
    dy: Float
    index: NDArray[np.intp]


class _Canvas:
    """(n, 96, 96) with a margin, on which cells are laid one over the other by maximum."""

    def __init__(self, n: int) -> None:
        self._side = SIZE + 2 * _MARGIN
        self._values = np.zeros((n, self._side, self._side), np.float32)

    def window(self, cells: Cells, reach: int) -> _Window:
        # at the canvas' edge the window moves inwards: what it loses lies outside the patch
        left = np.clip(np.rint(cells.x).astype(np.intp), reach - _MARGIN, None)
        top = np.clip(np.rint(cells.y).astype(np.intp), reach - _MARGIN, None)
        left = np.clip(left, None, SIZE + _MARGIN - 1 - reach)
        top = np.clip(top, None, SIZE + _MARGIN - 1 - reach)
        offset = np.arange(-reach, reach + 1)
        column = left[:, None] + offset
        row = top[:, None] + offset
        line = (cells.patch[:, None] * self._side + row + _MARGIN) * self._side
        return _Window(
            dx=(column - cells.x[:, None]).astype(np.float32)[:, None, :],
            dy=(row - cells.y[:, None]).astype(np.float32)[:, :, None],
            index=line[:, :, None] + (column + _MARGIN)[:, None, :],
        )

    def lay(self, window: _Window, values: Float) -> None:
        np.maximum.at(self._values.reshape(-1), window.index.reshape(-1), values.reshape(-1))

    def patches(self) -> Float:
        inner = slice(_MARGIN, _MARGIN + SIZE)
        return self._values[:, inner, inner]


def _turned(window: _Window, angle: Float) -> tuple[Float, Float]:
    cos, sin = each(np.cos(angle)), each(np.sin(angle))
    return window.dx * cos + window.dy * sin, window.dy * cos - window.dx * sin
