"""Statistics of the pixels against plain loops and hand-made patches."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from src.exploration import statistics
from src.exploration.findings import compare_splits

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (11, 96, 96, 3), dtype=np.uint8)
LABELS = np.array([0, 1, 0, 0, 1, 1, 0, 1, 0, 0, 1], dtype=np.uint8)


def flat(*values):
    """One patch a triple (red, green, blue), the same at every pixel."""
    return np.stack([np.full((96, 96, 3), value, dtype=np.uint8) for value in values])


def ignore(_):
    pass


@pytest.fixture(scope="module")
def survey():
    return statistics.survey_pixels(PIXELS, LABELS, chunk_patches=4, advance=ignore)


def test_channel_statistics_of_known_pixels():
    """Channels exchanged, or a mean over patches of unequal halves, give other numbers."""
    patches = flat((255, 51, 0), (0, 51, 0))
    result = statistics.channel_moments(statistics._histogram(patches))
    assert result[0] == pytest.approx([0.5, 0.2, 0.0])
    assert result[1] == pytest.approx([0.5, 0.0, 0.0])


def test_statistics_equal_numpy_on_all_pixels_at_once(survey):
    result = statistics.channel_moments(survey.histogram.sum(axis=0))
    pixels = PIXELS.astype(np.float64) / 255
    assert result[0] == pytest.approx(pixels.mean(axis=(0, 1, 2)))
    assert result[1] == pytest.approx(pixels.std(axis=(0, 1, 2)))


def test_statistics_of_no_pixels_are_refused():
    with pytest.raises(ValueError, match="no pixels"):
        statistics.channel_moments(np.zeros((3, 256), dtype=np.int64))


def test_survey_equals_a_plain_loop(survey):
    """Eleven patches in chunks of four: a dropped last chunk, or labels out of step, show here."""
    for position, patch in enumerate(PIXELS.astype(np.float64)):
        grey = (77 * patch[..., 0] + 150 * patch[..., 1] + 29 * patch[..., 2]) // 256
        assert survey.brightness[position] == pytest.approx(grey.mean())
        laplacian = [
            grey[y - 1, x] + grey[y + 1, x] + grey[y, x - 1] + grey[y, x + 1] - 4 * grey[y, x]
            for y in range(1, 95)
            for x in range(1, 95)
        ]
        assert survey.sharpness[position] == pytest.approx(np.var(laplacian), rel=1e-5)
    for label in range(2):
        of_label = PIXELS[np.flatnonzero(label == LABELS)]
        assert (survey.pixel_sum[label] == of_label.sum(axis=0, dtype=int)).all()
        assert survey.n_patches[label] == len(of_label)
        for channel in range(3):
            values = np.bincount(of_label[..., channel].ravel(), minlength=256)
            assert survey.histogram[label, channel].tolist() == values.tolist()


def test_chunk_size_is_irrelevant_and_every_patch_is_advanced(survey):
    advanced = []
    other = statistics.survey_pixels(PIXELS, LABELS, chunk_patches=11, advance=advanced.append)
    assert sum(advanced) == len(PIXELS)
    assert (other.histogram == survey.histogram).all()
    assert (other.sharpness == survey.sharpness).all()


def test_a_memory_map_gives_what_the_array_gives(survey, tmp_path):
    """Pages are handed back while the file is read: what is read must stay what it was."""
    np.save(tmp_path / "pixels.npy", PIXELS)
    mapped = np.load(tmp_path / "pixels.npy", mmap_mode="r")
    result = statistics.survey_pixels(mapped, LABELS, chunk_patches=2, advance=ignore)
    assert (result.histogram == survey.histogram).all()
    assert (result.pixel_sum == survey.pixel_sum).all()
    channels = statistics.survey_channels(mapped, advance=ignore)
    assert (channels == survey.histogram.sum(axis=0)).all()


def test_reference_passes_by_channel_and_both_moments_count():
    """Red and blue exchanged pass on the means (0.006 apart) and fail on the deviations."""
    mean, std = (
        np.array(statistics.REFERENCE_MEAN),
        np.array(statistics.REFERENCE_STD),
    )
    green_off = np.array([0, 0.0101, 0])
    assert statistics.within_reference((mean + 0.0099, std)) == [True] * 3
    assert statistics.within_reference((mean + green_off, std)) == [True, False, True]
    assert statistics.within_reference((mean[::-1], std[::-1])) == [False, True, False]


def test_a_blurred_patch_is_less_sharp_than_the_same_patch():
    patch = PIXELS[:1]
    blurred = patch.copy()
    blurred[:, 1:-1, 1:-1] = (
        patch[:, :-2, 1:-1] // 4
        + patch[:, 2:, 1:-1] // 4
        + patch[:, 1:-1, :-2] // 4
        + patch[:, 1:-1, 2:] // 4
    )
    pixels = np.concatenate([patch, blurred, flat((200, 200, 200))])
    sharpness = statistics.survey_pixels(
        pixels, np.zeros(3, dtype=np.uint8), advance=ignore
    ).sharpness
    assert sharpness[0] > sharpness[1] > sharpness[2] == 0


def test_share_explained_by_hand():
    """Groups (0, 2) and (4, 6): total 20, between 4 · 2² = 16."""
    values = np.array([0.0, 2.0, 4.0, 6.0])
    assert statistics.share_explained(values, pd.Series(list("aabb"))) == pytest.approx(0.8)
    assert statistics.share_explained(values, pd.Series(list("abcd"))) == pytest.approx(1.0)
    assert statistics.share_explained(np.ones(4), pd.Series(list("aabb"))) == 0.0


def test_auroc_by_hand_ties_count_half():
    labels = np.array([0, 0, 1, 1], dtype=np.uint8)
    assert statistics.ranked_above(np.array([0.1, 0.4, 0.35, 0.8]), labels) == 0.75
    assert statistics.ranked_above(np.ones(4), labels) == 0.5
    with pytest.raises(ValueError, match="one class"):
        statistics.ranked_above(np.ones(2), np.zeros(2, dtype=np.uint8))


def test_largest_shift_by_hand():
    """Of 0 0 0 0 | 0 0 | 3 3, mean 0.75, sd √(2·3²/8 − 0.75²) = 1.299: 3 / 1.299 = 2.309."""
    splits = pd.Series(["train"] * 4 + ["val"] * 2 + ["holdout"] * 2)
    features = pd.DataFrame({"a": [1.0] * 8, "b": [0, 0, 0, 0, 0, 0, 3, 3]})
    labels, groups = np.zeros(8), splits
    found = compare_splits(features, splits, labels, groups)["largest_shift"]
    assert found == {"split": "holdout", "feature": "b", "standardised": 2.3094, "large": True}
    assert not compare_splits(features[["a"]], splits, labels, groups)["largest_shift"]["large"]
