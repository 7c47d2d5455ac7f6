"""Haematoxylin and eosin as optical density: how much stain, seen through a slide's own light.

Beer-Lambert: intensity = light · exp(−(h · H + e · E)), where h and e are the amounts of the two
stains and H, E their absorption in red, green and blue (Ruifrok & Johnston 2001, Anal. Quant.
Cytol. Histol. 23:291).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# unit vectors over R, G, B; two scanners: one renders nuclei violet, one nearly black
_HAEMATOXYLIN = np.array([[0.60, 0.76, 0.24], [0.50, 0.70, 0.51]])
_EOSIN = np.array([[0.24, 0.95, 0.20], [0.17, 0.83, 0.53]])


@dataclass(frozen=True)
class Stains:
    """The colour of ``n`` slides; first axis the slide.

    Attributes
    ----------
    haematoxylin, eosin : (n, 3)
        Absorption per unit of stain in R, G, B; ≥ 0.
    light : (n, 3)
        Intensity behind no tissue at all, in grey levels, 0 to 255.
    """

    haematoxylin: NDArray[np.float32]
    eosin: NDArray[np.float32]
    light: NDArray[np.float32]

    def of(self, slide: NDArray[np.int64]) -> "Stains":
        """The stains of those slides, in that order, repeats allowed."""
        return Stains(self.haematoxylin[slide], self.eosin[slide], self.light[slide])


def draw_stains(rng: np.random.Generator, n_slides: int) -> Stains:
    """Draw each slide's scanner, stain vectors, stain strengths and light."""
    scanner = (np.arange(n_slides) + rng.integers(2)) % 2
    return Stains(
        haematoxylin=_jittered(rng, _HAEMATOXYLIN[scanner], strength=1.25),
        eosin=_jittered(rng, _EOSIN[scanner], strength=0.95),
        light=_light(rng, n_slides),
    )


def _jittered(
    rng: np.random.Generator, vectors: NDArray[np.float64], *, strength: float
) -> NDArray[np.float32]:
    moved = np.clip(vectors + rng.normal(0, 0.03, vectors.shape), 0.02, None)
    unit = moved / np.linalg.norm(moved, axis=1, keepdims=True)
    strengths = strength * np.exp(rng.normal(0, 0.16, (len(vectors), 1)))
    absorption: NDArray[np.float32] = (unit * strengths).astype(np.float32)
    return absorption


def _light(rng: np.random.Generator, n_slides: int) -> NDArray[np.float32]:
    brightness = rng.uniform(232, 250, (n_slides, 1))
    return (brightness + rng.normal(0, 2, (n_slides, 3))).astype(np.float32)


def mix_stains(
    haematoxylin: NDArray[np.float32], eosin: NDArray[np.float32], stains: Stains
) -> NDArray[np.float32]:
    """RGB intensity in grey levels, (n, h, w, 3), of the stain amounts (n, h, w), both ≥ 0."""
    density = (
        haematoxylin[..., None] * stains.haematoxylin[:, None, None, :]
        + eosin[..., None] * stains.eosin[:, None, None, :]
    )
    intensity: NDArray[np.float32] = stains.light[:, None, None, :] * np.exp(-density)
    return intensity
