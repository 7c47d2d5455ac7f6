"""What ingest measures on every patch."""

from __future__ import annotations

import numpy as np
import pytest

from src.data.measurements import (
    Measurements,
    blank_flag,
    density_moments,
    measure,
    optical_density,
    orientations,
    perceptual_hashes,
    stain_densities,
)


def tissue(n: int, seed: int = 0) -> np.ndarray:
    """(n, 96, 96, 3) uint8 with structure at low frequencies."""
    coarse = np.random.default_rng(seed).uniform(40, 250, (n, 12, 12, 3))
    return coarse.repeat(8, axis=1).repeat(8, axis=2).astype(np.uint8)


ORIENTED = [
    lambda p: p,
    lambda p: p[:, ::-1],
    lambda p: p[:, :, ::-1],
    lambda p: p[:, ::-1, ::-1],
    lambda p: p.transpose(0, 2, 1, 3),
    lambda p: p.transpose(0, 2, 1, 3)[:, ::-1],
    lambda p: p.transpose(0, 2, 1, 3)[:, :, ::-1],
    lambda p: p.transpose(0, 2, 1, 3)[:, ::-1, ::-1],
]


def hashes_of(pixels: np.ndarray) -> np.ndarray:
    hashes, known = perceptual_hashes(optical_density(np.ascontiguousarray(pixels)))
    assert known.all()
    return hashes


def test_hash_of_every_orientation_follows_from_one() -> None:
    """Catches bit arithmetic that turns the wrong way: compared with the turned pixels."""
    pixels = tissue(20)
    derived = orientations(hashes_of(pixels))
    for k, turn in enumerate(ORIENTED):
        distance = np.bitwise_count(hashes_of(turn(pixels)) ^ derived[:, k])
        assert distance.max() <= 1  # a coefficient of nearly 0 may round to either side


def test_hash_survives_brightness_and_noise_but_not_another_patch() -> None:
    pixels = tissue(20)
    noise = np.random.default_rng(1).integers(-3, 4, pixels.shape)
    noisy = np.clip(pixels * 0.95 + noise, 0, 255).astype(np.uint8)
    assert np.bitwise_count(hashes_of(noisy) ^ hashes_of(pixels)).max() <= 4
    assert np.bitwise_count(hashes_of(tissue(20, seed=2)) ^ hashes_of(pixels)).min() > 8


def test_flat_patches_have_no_hash() -> None:
    """Catches all glass taken for one huge set of near-duplicates."""
    pixels = np.full((2, 96, 96, 3), 230, np.uint8)
    pixels[1] += np.random.default_rng(0).integers(-9, 10, (96, 96, 3)).astype(np.uint8)
    assert perceptual_hashes(optical_density(pixels))[1].tolist() == [False, False]


def test_moments_of_two_colours_by_hand() -> None:
    """Half the pixels 255 (density 0), half 25.6 − 1 ≈ 25 (density ≈ 1) in red alone."""
    pixels = np.full((1, 96, 96, 3), 255, np.uint8)
    pixels[0, :48, :, 0] = 25
    moments = density_moments(optical_density(pixels))[0]
    density = np.log10(256 / 26)
    assert moments[:3] == pytest.approx([density / 2, 0, 0], abs=1e-5)
    assert moments[3:] == pytest.approx([density**2 / 4, 0, 0, 0, 0, 0], abs=1e-5)


def test_stains_are_unmixed_into_what_was_mixed() -> None:
    haematoxylin = np.array([0.650, 0.704, 0.286])
    eosin = np.array([0.072, 0.990, 0.105])
    mixed = 2 * haematoxylin / np.linalg.norm(haematoxylin) + 3 * eosin / np.linalg.norm(eosin)
    assert stain_densities(mixed[None])[0] == pytest.approx([2, 3])


def test_unreadable_patches_are_unmeasured_and_the_others_as_alone() -> None:
    """Catches a zeroed row counted as a black patch, and rows mixed up around it."""
    pixels = tissue(40)
    readable = np.ones(40, np.bool_)
    readable[[0, 17, 39]] = False
    pixels[~readable] = 0
    measured = measure(pixels, readable)
    assert not measured.hash_known[~readable].any()
    assert np.isnan(measured.moments[~readable]).all()
    assert [measured.blanks[i] for i in (0, 17, 39)] == ["", "", ""]
    levels = pixels[readable].astype(np.int64)
    assert measured.sums.tolist() == levels.sum(axis=(0, 1, 2)).tolist()
    assert measured.squares.tolist() == (levels**2).sum(axis=(0, 1, 2)).tolist()
    for i in (1, 16, 18, 38):
        alone = measure(pixels[i : i + 1], readable[i : i + 1])
        assert measured.hashes[i] == alone.hashes[0]
        np.testing.assert_allclose(measured.moments[i], alone.moments[0], atol=1e-6)


def test_joined_keeps_order() -> None:
    parts = [measure(tissue(n, seed=n), np.ones(n, np.bool_)) for n in (2, 3)]
    joined = Measurements.joined(parts)
    assert joined.hashes.tolist() == [*parts[0].hashes, *parts[1].hashes]
    assert len(joined.blanks) == len(joined.moments) == 5
    assert joined.sums.tolist() == (parts[0].sums + parts[1].sums).tolist()
    assert Measurements.joined([]).blanks == []


@pytest.mark.parametrize(
    ("mean", "std", "flag"),
    [
        ((255, 255, 255), (0, 0, 0), "blank_white"),
        ((200, 200, 200), (5.9, 5.9, 5.9), "blank_white"),
        ((200, 200, 199), (0, 0, 0), ""),  # a colour, not glass
        ((230, 230, 230), (0, 6.0, 0), ""),  # something varies in one channel
        ((0, 0, 0), (0, 0, 0), "blank_black"),
        ((60, 60, 60), (5.9, 0, 0), "blank_black"),
        ((60, 61, 60), (0, 0, 0), ""),
    ],
)
def test_blank_flag(mean: tuple[int, ...], std: tuple[float, ...], flag: str) -> None:
    assert blank_flag(np.array(mean, float), np.array(std, float)) == flag
