"""Pixels of generated patches: shapes that tell the label, colours that don't.

The two are kept apart. First every pixel gets a *shade*, a number that only says which of two
pixels of the same patch is darker: chromatin above nuclear edge above cytoplasm above gaps. Then
the pixels of a patch are sorted by shade and dyed in that order from a palette drawn without
looking at the label. So the colours of a patch, each with its number of pixels, are independent of
what is drawn: only size, shape and texture of nuclei tell.

Lengths are px at about 1 µm/px. Places are complex numbers, x + iy from the middle of the patch:
``abs`` is a distance and a product turns. Arrays have the patch, or the nucleus, as first axis.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from src.drawing.plan import BESIDE, BLACK, PIXELS, SLIDES, TUMOUR, WHITE, SubsetPlan

Floats = NDArray[np.float32]

SIZE = 96
_CENTRE_REACH = 16  # px from the middle to the sides of the square that decides the label
_MARGIN = 10  # nuclei whose middle is this far outside the patch may still reach into it

# unit absorption over R, G, B of two scanners (Ruifrok & Johnston 2001, Anal. Quant. Cytol.
# Histol. 23:291): one shows nuclei violet, the other nearly black
_HAEMATOXYLIN = np.array([[0.60, 0.76, 0.24], [0.50, 0.70, 0.51]])
_EOSIN = np.array([[0.24, 0.95, 0.20], [0.17, 0.83, 0.53]])


@dataclass(frozen=True)
class NucleusType:
    """How nuclei of one type look.

    Attributes
    ----------
    radius : px, mean
    size_spread : standard deviation of the logarithm of the radius
    stretch, dent : size of the outline's second and third harmonic, relative to the radius
    window : px from the middle within which a nucleus is drawn
    """

    radius: float
    size_spread: float
    stretch: float
    dent: float
    window: int


LYMPHOCYTE = NucleusType(radius=3.4, size_spread=0.12, stretch=0.06, dent=0.02, window=7)
TUMOUR_CELL = NucleusType(radius=5.0, size_spread=0.18, stretch=0.13, dent=0.06, window=12)


@dataclass(frozen=True)
class Patches:
    """``pixels`` (n, 96, 96, 3) uint8 RGB; ``tumour`` (n, 96, 96), True on tumour nuclei."""

    pixels: NDArray[np.uint8]
    tumour: NDArray[np.bool_]


def draw_chunk(chunk: SubsetPlan) -> Patches:
    """Draw the patches of a chunk, in its order."""
    rng = chunk.generator(PIXELS, chunk.first)
    n = len(chunk)
    # of the pixels of each patch, how many are nucleus
    nuclear = (_per_slide(chunk, 0, 0.28, 0.40) + rng.uniform(-0.06, 0.06, n)).astype(np.float32)
    shade, tumour = _shade(rng, chunk, nuclear)
    palette = _palette(rng, chunk, nuclear)
    grain = _per_slide(chunk, 1, 1.5, 3.5).astype(np.float32)[:, None, None]
    palette += grain * rng.standard_normal(palette.shape, dtype=np.float32)
    palette = np.clip(np.rint(palette), 0, 255).astype(np.uint8)
    # shades as 16-bit integers: NumPy's radix sort takes an eighth of the time it takes for floats
    order = np.argsort(shade.reshape(n, -1), axis=1, kind="stable")
    pixels = np.empty_like(palette)
    np.put_along_axis(pixels, order[..., None], palette, axis=1)
    pixels = pixels.reshape(n, SIZE, SIZE, 3)
    blank = np.isin(chunk.kind, (WHITE, BLACK))
    pixels[blank] = np.where(chunk.kind[blank] == WHITE, 255, 0)[:, None, None, None]
    tumour[blank] = False
    return Patches(pixels, tumour)


def _per_slide(chunk: SubsetPlan, number: int, low: float, high: float) -> NDArray[np.float64]:
    """(n,) a number between ``low`` and ``high`` that the patches of a slide share."""
    of_slide = chunk.generator(SLIDES, number).uniform(low, high, chunk.n_slides)
    return np.asarray(of_slide[chunk.slide])


def _shade(
    rng: np.random.Generator, chunk: SubsetPlan, nuclear: Floats
) -> tuple[NDArray[np.uint16], NDArray[np.bool_]]:
    """Shade (n, 96, 96), and where tumour nuclei are."""
    n = len(chunk)
    scale = _per_slide(chunk, 2, 0.85, 1.15)
    small, large = _depths(rng, chunk, nuclear, scale)
    depth = np.maximum(small, large)
    # the depth at which exactly the share `nuclear` of the patch's pixels is nucleus
    rank = np.sort(depth.reshape(n, -1), axis=1)
    at = np.rint((1 - nuclear) * (SIZE * SIZE - 1)).astype(np.intp)
    inside = depth - rank[np.arange(n), at][:, None, None]
    is_nucleus = inside >= 0
    is_tumour = large > small
    coarse, broad = (_noise(rng, n, sigma) for sigma in (1.2, 3.5))
    # chromatin: coarse clumps under a dark rim in tumour; lymphocytes evenly dark, some darker
    rim = np.exp(-(((inside - 0.12) / 0.1) ** 2))
    chromatin = np.where(is_tumour, coarse + 1.2 * rim, broad + 0.4 * coarse)
    chromatin += 3 * np.minimum(inside / 0.25, 1)
    # stroma: wavy fibres with pale slits between them, giving way to cytoplasm around tumour
    x = np.arange(SIZE, dtype=np.float32)
    angle = rng.uniform(0, np.pi, (n, 1, 1)).astype(np.float32)
    period = rng.uniform(7, 14, (n, 1, 1)).astype(np.float32)
    across = x * np.cos(angle) + x[:, None] * np.sin(angle)
    wave = np.sin(across * (2 * np.pi / period) + 2.5 * broad)
    cytoplasm = np.clip(1 + large, 0, 1)
    stroma = wave * (1 - cytoplasm) + cytoplasm + 0.7 * coarse
    stroma += 3 * np.exp(np.minimum(inside, 0) / 0.1)
    shade = np.where(is_nucleus, np.clip(chromatin, -8, 7) + 24, np.clip(stroma, -7, 8) + 8)
    return (shade * 2000).astype(np.uint16), is_nucleus & is_tumour


def _depths(
    rng: np.random.Generator, chunk: SubsetPlan, nuclear: Floats, scale: NDArray[np.float64]
) -> tuple[Floats, Floats]:
    """Depth in lymphocytes and in tumour nuclei, each (n, 96, 96): 1 in the middle of a nucleus,
    0 at its outline, −1 at twice that distance and beyond."""
    n = len(chunk)
    # a nest of tumour, from a few cells to the whole patch: a disc around the centre or beside it
    beside = chunk.kind == BESIDE
    radius = np.where(beside, rng.uniform(30, 70, n), rng.uniform(8, 70, n))
    radius[~beside & (chunk.kind != TUMOUR)] = 0
    away = np.where(beside, radius + 20, rng.uniform(0, 0.5, n) * radius)
    nest = away * np.exp(2j * np.pi * rng.random(n))
    fields = []
    for kind in (LYMPHOCYTE, TUMOUR_CELL):
        # as many nuclei as cover the share `nuclear`: one on pitch² px
        pitch = kind.radius * scale * np.sqrt(np.pi / nuclear)
        place = _lattice(rng, pitch)
        in_nest = np.abs(place - nest[:, None]) < radius[:, None]
        if kind is TUMOUR_CELL:
            anchor = place.shape[1] // 2
            place[:, anchor] = _CENTRE_REACH * 0.8 * (rng.uniform(-1, 1, n) + 1j * rng.uniform(-1, 1, n))
            in_nest[:, anchor] = chunk.kind == TUMOUR
            from_centre = np.maximum(np.abs(place.real), np.abs(place.imag))
            in_nest &= (from_centre > _CENTRE_REACH + kind.window) | ~beside[:, None]
        within = np.maximum(np.abs(place.real), np.abs(place.imag)) < SIZE / 2 + _MARGIN
        patch, index = np.nonzero(within & (in_nest == (kind is TUMOUR_CELL)))
        fields.append(_stamp(rng, kind, n, patch, place[patch, index], scale[patch]))
    return fields[0], fields[1]


def _lattice(rng: np.random.Generator, pitch: NDArray[np.float64]) -> NDArray[np.complex128]:
    """(n, k) places about ``pitch`` (n,) px apart: a turned hexagonal lattice, jittered."""
    half = int(np.ceil((SIZE / 2 + _MARGIN) * np.sqrt(2) / pitch.min() / np.sqrt(0.75)))
    row, column = np.mgrid[-half : half + 1, -half : half + 1].reshape(2, -1)
    grid = column + 0.5 * (row % 2) + 1j * np.sqrt(0.75) * row
    jitter = rng.uniform(-0.3, 0.3, (2, len(pitch), len(grid)))
    turn = pitch * np.exp(2j * np.pi * rng.random(len(pitch)))
    return np.asarray((grid + jitter[0] + 1j * jitter[1]) * turn[:, None] * np.sqrt(2 / np.sqrt(3)))


def _stamp(
    rng: np.random.Generator,
    kind: NucleusType,
    n: int,
    patch: NDArray[np.intp],
    place: NDArray[np.complex128],
    scale: NDArray[np.float64],
) -> Floats:
    """Depth (n, 96, 96) in nuclei at ``place`` (m,) of ``patch`` (m,), the deepest where several
    meet."""
    m = len(place)
    radius = kind.radius * scale * np.exp(rng.normal(0, kind.size_spread, m))
    stretch, dent = (
        size * (rng.standard_normal(m) + 1j * rng.standard_normal(m))
        for size in (kind.stretch, kind.dent)
    )
    pad = _MARGIN + kind.window + 1
    side = SIZE + 2 * pad
    canvas = np.full(n * side * side, -1, np.float32)
    offset = np.arange(-kind.window, kind.window + 1)
    # px of the patch's first row and column: the middle is between px 47 and 48
    column = np.rint(place.real + (SIZE - 1) / 2).astype(np.intp)
    row = np.rint(place.imag + (SIZE - 1) / 2).astype(np.intp)
    # (m, k, k): every pixel of the window around each nucleus, seen from the nucleus' middle
    middle = column + 1j * row - (SIZE - 1) / 2 * (1 + 1j) - place
    z = (middle[:, None, None] + offset + 1j * offset[:, None]).astype(np.complex64)
    away = np.abs(z) + np.float32(1e-6)
    unit = z / away
    # r(φ) = radius · (1 + |stretch| cos(2φ + …) + |dent| cos(3φ + …))
    wave = ((_each(stretch) + _each(dent) * unit) * unit * unit).real
    depth = 1 - away / (_each(radius).real * np.maximum(1 + wave, 0.4))
    corner = (patch * side + row + pad) * side + column + pad
    index = corner[:, None, None] + offset[:, None] * side + offset
    np.maximum.at(canvas, index.ravel(), depth.ravel())
    return canvas.reshape(n, side, side)[:, pad:-pad, pad:-pad]


def _each(values: NDArray[np.generic]) -> NDArray[np.complex64]:
    """(m,) → (m, 1, 1), to meet (m, rows, columns)."""
    return values.astype(np.complex64)[:, None, None]


def _noise(rng: np.random.Generator, n: int, sigma: float) -> Floats:
    """(n, 96, 96) of mean 0 and standard deviation 1, smooth over ``sigma`` px."""
    noise = rng.standard_normal((n, SIZE, SIZE), dtype=np.float32)
    noise = gaussian_filter(noise, sigma, axes=(1, 2), mode="wrap", truncate=3)
    return np.asarray(noise / noise.std(axis=(1, 2), keepdims=True))


def _palette(rng: np.random.Generator, chunk: SubsetPlan, nuclear: Floats) -> Floats:
    """(n, 9216, 3) grey levels of each patch's pixels, from the palest shade to the darkest.

    Beer-Lambert: light · exp(−(h · H + e · E)), h and e the amounts of the two stains.
    """
    n = len(chunk)
    slides = chunk.generator(SLIDES, 3)
    scanner = slides.permutation(chunk.n_slides) % 2
    absorption = []
    for vectors in (_HAEMATOXYLIN, _EOSIN):
        moved = np.clip(vectors[scanner] + slides.normal(0, 0.03, (chunk.n_slides, 3)), 0.02, None)
        strength = np.exp(slides.normal(0, 0.14, (chunk.n_slides, 1)))
        absorption.append(moved / np.linalg.norm(moved, axis=1, keepdims=True) * strength)
    light = slides.uniform(232, 250, (chunk.n_slides, 1)) + slides.normal(0, 2, (chunk.n_slides, 3))

    gaps = rng.uniform(0.01, 0.15, n)
    strength = np.exp(rng.normal(0, 0.1, (2, n)))
    rank = np.linspace(0, 1, SIZE * SIZE)
    stains = np.empty((n, SIZE * SIZE, 2))
    for patch in range(n):
        edge = 1 - nuclear[patch]
        knots = [0, gaps[patch], gaps[patch] + 0.06, edge - 0.03, edge + 0.03, 1]
        haematoxylin = [0.02, 0.05, 0.12, 0.25, 0.75, 1.55]
        eosin = [0.02, 0.10, 0.30, 0.62, 0.50, 0.35]
        stains[patch, :, 0] = np.interp(rank, knots, haematoxylin) * strength[0, patch]
        stains[patch, :, 1] = np.interp(rank, knots, eosin) * strength[1, patch]
    vectors = np.stack(absorption, axis=1)[chunk.slide]  # (n, 2, 3)
    return np.asarray(light[chunk.slide][:, None] * np.exp(-stains @ vectors), np.float32)
