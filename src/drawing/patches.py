"""Pixels of generated patches: shapes that tell the label, colours that don't.

The two are kept apart. Every pixel first gets a *shade*, which only says which of two pixels of one
patch is darker: chromatin above the edge of a nucleus, above cytoplasm, above gaps. Then the pixels
of a patch are sorted by shade and dyed in that order from a palette that was drawn without looking
at the label. So the colours of a patch, and how many pixels have each, are independent of what it
shows: only size, shape and texture of nuclei tell tumour from normal.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from src.drawing.nuclei import Floats, nuclear_depths
from src.drawing.plan import BLACK, COLOURS, SHAPES, SLIDES, WHITE, SubsetPlan
from src.patch import SIZE_PX

# unit absorption over R, G, B of two scanners (Ruifrok & Johnston 2001, Anal. Quant. Cytol.
# Histol. 23:291): one shows nuclei violet, the other nearly black
_HAEMATOXYLIN = np.array([[0.60, 0.76, 0.24], [0.50, 0.70, 0.51]])
_EOSIN = np.array([[0.24, 0.95, 0.20], [0.17, 0.83, 0.53]])


@dataclass(frozen=True)
class Patches:
    """``pixels`` (n, 96, 96, 3) uint8 RGB; ``tumour`` (n, 96, 96), True on tumour nuclei."""

    pixels: NDArray[np.uint8]
    tumour: NDArray[np.bool_]


def draw_chunk(chunk: SubsetPlan) -> Patches:
    """Draw the patches of a chunk, in its order."""
    n = len(chunk)
    coverage, scale, grain, light, absorption = _slide_looks(chunk)
    # two generators, so that colours can't depend on how many numbers the shapes took
    shapes, colours = (chunk.generator(purpose, chunk.first) for purpose in (SHAPES, COLOURS))
    coverage = coverage + colours.uniform(-0.06, 0.06, n).astype(np.float32)
    palette = _palette(colours, coverage, grain, light, absorption)
    shade, tumour = _shade(shapes, chunk, coverage, scale)
    # shades are 16-bit integers: NumPy sorts them by radix, nine times as fast as floats
    order = np.argsort(shade.reshape(n, -1), axis=1, kind="stable")
    pixels = np.empty_like(palette)
    np.put_along_axis(pixels, order[..., None], palette, axis=1)
    pixels = pixels.reshape(n, SIZE_PX, SIZE_PX, 3)
    pixels[chunk.kind == WHITE] = 255
    pixels[chunk.kind == BLACK] = 0
    return Patches(pixels, tumour)


def _slide_looks(chunk: SubsetPlan) -> tuple[Floats, Floats, Floats, Floats, Floats]:
    """What the patches of a slide share, for each patch.

    Share of pixels that are nucleus (n,); factor of all radii (n,); the camera's noise (n,) and the
    light behind no tissue (n, 3) in grey levels; absorption (n, 2, 3) by a unit of haematoxylin and
    of eosin in R, G and B.
    """
    rng, n = chunk.generator(SLIDES), chunk.n_slides
    scanner = rng.permutation(n) % 2
    stains = np.stack([_HAEMATOXYLIN[scanner], _EOSIN[scanner]], axis=1)
    stains = np.clip(stains + rng.normal(0, 0.03, stains.shape), 0.02, None)
    stains /= np.linalg.norm(stains, axis=2, keepdims=True)
    of_slide = (
        rng.uniform(0.28, 0.40, n),
        rng.uniform(0.85, 1.15, n),
        rng.uniform(1.5, 3.5, n),
        rng.uniform(232, 250, (n, 1)) + rng.normal(0, 2, (n, 3)),
        stains * np.exp(rng.normal(0, 0.14, (n, 2, 1))),
    )
    coverage, scale, grain, light, absorption = (
        values[chunk.slide].astype(np.float32) for values in of_slide
    )
    return coverage, scale, grain, light, absorption


def _palette(
    rng: np.random.Generator, coverage: Floats, grain: Floats, light: Floats, absorption: Floats
) -> NDArray[np.uint8]:
    """(n, 9216, 3) the colours of each patch's pixels, from the palest shade to the darkest.

    Beer-Lambert: light · exp(−(h · H + e · E)), h and e the amounts of the two stains. The darkest
    pixels, as many as ``coverage`` (n,) says, have the colours of nuclei.
    """
    n = len(coverage)
    gaps = rng.uniform(0.01, 0.15, n)
    rank = np.linspace(0, 1, SIZE_PX * SIZE_PX)
    haematoxylin, eosin = np.empty((2, n, len(rank), 1), np.float32)
    for patch in range(n):
        gap, edge = gaps[patch], 1 - coverage[patch]
        # gaps, their edge, stroma and cytoplasm, the edge of nuclei, chromatin
        knots = [0, gap, gap + 0.06, edge - 0.03, edge + 0.03, 1]
        haematoxylin[patch, :, 0] = np.interp(rank, knots, [0.02, 0.05, 0.12, 0.25, 0.75, 1.55])
        eosin[patch, :, 0] = np.interp(rank, knots, [0.02, 0.10, 0.30, 0.62, 0.50, 0.35])
    absorption = absorption * np.exp(rng.normal(0, 0.1, (n, 2, 1))).astype(np.float32)
    # (n, 9216, 1) · (n, 1, 3); no matrix product, whose last bit may depend on BLAS' threads
    density = haematoxylin * absorption[:, :1] + eosin * absorption[:, 1:]
    palette = light[:, None] * np.exp(-density)
    palette += grain[:, None, None] * rng.standard_normal(palette.shape, dtype=np.float32)
    return np.asarray(np.clip(np.rint(palette), 0, 255), np.uint8)


def _shade(
    rng: np.random.Generator, chunk: SubsetPlan, coverage: Floats, scale: Floats
) -> tuple[NDArray[np.uint16], NDArray[np.bool_]]:
    """Shade (n, 96, 96), and True on tumour nuclei; exactly ``coverage`` (n,) is nucleus."""
    n = len(chunk)
    small, large = nuclear_depths(rng, chunk, coverage, scale)
    depth = np.maximum(small, large)
    # move all outlines inwards or outwards until they enclose the share `coverage` of the patch
    by_depth = np.sort(depth.reshape(n, -1), axis=1)
    first = np.rint((1 - coverage) * (SIZE_PX * SIZE_PX - 1)).astype(np.intp)
    depth = depth - by_depth[np.arange(n), first, None, None]
    is_nucleus, is_large = depth >= 0, large > small
    clumps, drift = _noise(rng, n, sigma=1.2), _noise(rng, n, sigma=3.5)

    # coarse chromatin and a dark rim in tumour; lymphocytes evenly dark, one darker than another
    rim = np.exp(-(((depth - 0.12) / 0.1) ** 2))
    chromatin = np.where(is_large, clumps + 1.2 * rim, drift + 0.4 * clumps)
    chromatin += 3 * np.minimum(depth / 0.25, 1)  # pale at the very edge: nuclei aren't cut out

    # wavy fibres with pale slits between them, giving way to smooth cytoplasm around tumour nuclei
    x = np.arange(SIZE_PX, dtype=np.float32)
    angle = rng.uniform(0, np.pi, (n, 1, 1)).astype(np.float32)
    period = rng.uniform(7, 14, (n, 1, 1)).astype(np.float32)
    across = x * np.cos(angle) + x[:, None] * np.sin(angle)
    fibres = np.sin(across * (2 * np.pi / period) + 2.5 * drift)
    cytoplasm = np.clip(1 + large, 0, 1)
    stroma = fibres * (1 - cytoplasm) + cytoplasm + 0.7 * clumps
    stroma += 3 * np.exp(np.minimum(depth, 0) / 0.1)

    shade = np.where(is_nucleus, np.clip(chromatin, -8, 7) + 24, np.clip(stroma, -7, 8) + 8)
    return (shade * 2000).astype(np.uint16), is_nucleus & is_large  # below 31 · 2000 < 2¹⁶


def _noise(rng: np.random.Generator, n: int, *, sigma: float) -> Floats:
    """(n, 96, 96) of mean 0 and standard deviation 1, smooth over ``sigma`` px."""
    noise = rng.standard_normal((n, SIZE_PX, SIZE_PX), dtype=np.float32)
    noise = gaussian_filter(noise, sigma, axes=(1, 2), mode="wrap", truncate=3)
    return np.asarray(noise / noise.std(axis=(1, 2), keepdims=True))
