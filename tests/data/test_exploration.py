"""Statistics of the pixels against plain loops and hand-made patches; figures that render."""

import io

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from src.data import exploration, galleries
from src.data import exploration_figures as figures
from src.data.comparison_figure import split_comparison
from src.data.figure_parts import CLASS_COLOURS, counted, draw_centre
from src.data.split_comparison import largest_shift, report_comparison

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (11, 96, 96, 3), dtype=np.uint8)
LABELS = np.array([0, 1, 0, 0, 1, 1, 0, 1, 0, 0, 1], dtype=np.uint8)


def flat(*values):
    """One patch a triple (red, green, blue), the same at every pixel."""
    return np.stack([np.full((96, 96, 3), value, dtype=np.uint8) for value in values])


@pytest.fixture(scope="module")
def survey():
    return exploration.survey_pixels(PIXELS, LABELS, chunk_patches=4)


def test_channel_statistics_of_known_pixels():
    """Channels exchanged, or a mean over patches of unequal halves, give other numbers."""
    patches = flat((255, 51, 0), (0, 51, 0))
    result = exploration.channel_statistics(exploration.channel_histogram(patches))
    assert result.mean == pytest.approx([0.5, 0.2, 0.0])
    assert result.std == pytest.approx([0.5, 0.0, 0.0])


def test_statistics_equal_numpy_on_all_pixels_at_once(survey):
    result = exploration.channel_statistics(survey.histogram.sum(axis=0))
    pixels = PIXELS.astype(np.float64) / 255
    assert result.mean == pytest.approx(pixels.mean(axis=(0, 1, 2)))
    assert result.std == pytest.approx(pixels.std(axis=(0, 1, 2)))


def test_the_square_is_around_pixels_32_to_63():
    """Catches a square, or a mean inside it, one pixel off the region that the label is about."""
    axes = Figure().subplots()
    draw_centre(axes, side=96, top=100, left=200)
    for square in axes.patches:
        (x, y), (width, height) = square.get_xy(), (square.get_width(), square.get_height())
        # pixel 32 is drawn from 31.5 on
        assert (x, x + width) == (200 + 31.5, 200 + 63.5)
        assert (y, y + height) == (100 + 31.5, 100 + 63.5)
    inside = np.argwhere(figures._centre_mask(96))
    assert inside.min(axis=0).tolist() == [32, 32]
    assert inside.max(axis=0).tolist() == [63, 63]
    assert len(inside) == 32 * 32


def test_one_is_no_plural():
    assert [counted(n, "set") for n in (0, 1, 2, 1_000)] == [
        "0 sets", "1 set", "2 sets", "1,000 sets",
    ]  # fmt: skip
    assert counted(2, "patch") == "2 patches"


def test_statistics_of_no_pixels_are_refused():
    with pytest.raises(ValueError, match="no pixels"):
        exploration.channel_statistics(np.zeros((3, 256), dtype=np.int64))


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
        assert exploration.mean_patch(survey, label) == pytest.approx(of_label.mean(axis=0))
        assert survey.n_patches[label] == len(of_label)
        for channel in range(3):
            values = np.bincount(of_label[..., channel].ravel(), minlength=256)
            assert survey.histogram[label, channel].tolist() == values.tolist()


def test_chunk_size_is_irrelevant_and_every_patch_is_advanced(survey):
    advanced = []
    other = exploration.survey_pixels(PIXELS, LABELS, chunk_patches=11, advance=advanced.append)
    assert sum(advanced) == len(PIXELS)
    assert (other.histogram == survey.histogram).all()
    assert (other.sharpness == survey.sharpness).all()


def test_a_memory_map_gives_what_the_array_gives(survey, tmp_path):
    """Pages are handed back while the file is read: what is read must stay what it was."""
    np.save(tmp_path / "pixels.npy", PIXELS)
    mapped = np.load(tmp_path / "pixels.npy", mmap_mode="r")
    result = exploration.survey_pixels(mapped, LABELS, chunk_patches=2)
    assert (result.histogram == survey.histogram).all()
    assert (result.pixel_sum == survey.pixel_sum).all()
    assert (exploration.survey_channels(mapped) == survey.histogram.sum(axis=0)).all()


def test_reference_passes_by_channel_and_both_moments_count():
    """Red and blue exchanged pass on the means (0.006 apart) and fail on the deviations."""
    mean, std = (
        np.array(exploration.REFERENCE_MEAN),
        np.array(exploration.REFERENCE_STD),
    )
    like, green_off = exploration.ChannelStatistics, np.array([0, 0.0101, 0])
    assert exploration.within_reference(like(mean + 0.0099, std)) == [True] * 3
    assert exploration.within_reference(like(mean + green_off, std)) == [True, False, True]
    assert exploration.within_reference(like(mean[::-1], std[::-1])) == [False, True, False]


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
    sharpness = exploration.survey_pixels(pixels, np.zeros(3, dtype=np.uint8)).sharpness
    assert sharpness[0] > sharpness[1] > sharpness[2] == 0
    assert exploration.is_blurred(sharpness).tolist() == [False, False, True]


def test_share_explained_by_hand():
    """Groups (0, 2) and (4, 6): total 20, between 4 · 2² = 16."""
    values = np.array([0.0, 2.0, 4.0, 6.0])
    assert exploration.share_explained(values, pd.Series(list("aabb"))) == pytest.approx(0.8)
    assert exploration.share_explained(values, pd.Series(list("abcd"))) == pytest.approx(1.0)
    assert exploration.share_explained(np.ones(4), pd.Series(list("aabb"))) == 0.0


def test_auroc_by_hand_ties_count_half():
    labels = np.array([0, 0, 1, 1], dtype=np.uint8)
    assert exploration.ranked_above(np.array([0.1, 0.4, 0.35, 0.8]), labels) == 0.75
    assert exploration.ranked_above(np.ones(4), labels) == 0.5
    with pytest.raises(ValueError, match="one class"):
        exploration.ranked_above(np.ones(2), np.zeros(2, dtype=np.uint8))


def test_duplicate_sets_are_whole_and_unread_images_are_nobodys_duplicate():
    table = pd.DataFrame(
        {"id": list("gfedcba"), "sha256": ["1", "2", "1", None, None, "1", "2"]},
    )
    sets = [rows["id"].tolist() for rows in exploration.duplicate_sets(table)]
    assert sets == [["a", "f"], ["b", "e", "g"]]


def test_flags_are_matched_whole():
    flags = pd.Series(["", "blank_white", "duplicate_of:blank_white", "blank_black,duplicate_of:x"])
    found = {flag: exploration.has_flag(flags, flag).tolist() for flag in ("blank_", "duplicate_")}
    assert found == {
        "blank_": [False, True, False, True],
        "duplicate_": [False, False, True, True],
    }


STAINS = RNG.random((11, 2))
SPLITS = pd.Series(["train"] * 5 + ["val"] * 3 + ["holdout"] * 3)
FEATURES = pd.DataFrame(RNG.random((11, 3)), columns=["haematoxylin", "eosin", "structure"])
SLIDES = pd.Series(["s1"] * 5 + ["s2"] * 5 + [None])
MANY_SLIDES = pd.Series([f"slide {number}" for number in range(200)])
EVERY_FIGURE = {
    "labels": lambda _: figures.label_distribution(np.array([6, 5]), 3),
    "samples": lambda _: galleries.sample_grid(PIXELS, label=1, n_of_label=5),
    "one sample": lambda _: galleries.sample_grid(PIXELS[:1], label=0, n_of_label=1),
    "histograms": figures.channel_histograms,
    "means": figures.mean_patches,
    "stain by class": lambda _: figures.stain_scatter(STAINS, LABELS, None, np.arange(11)),
    "stain by slide": lambda _: figures.stain_scatter(STAINS, LABELS, SLIDES, np.arange(11)),
    "stain by cluster": lambda _: figures.stain_scatter(
        STAINS, LABELS, SLIDES, np.arange(11), unit="stain cluster"
    ),
    "splits": lambda _: split_comparison(
        report_comparison(FEATURES, SPLITS, LABELS, SPLITS),
        groups_are="stain clusters, a stand-in for slides",
    ),
    "near-duplicates": lambda _: galleries.near_duplicate_gallery(
        PIXELS[:4], captions=["a…\nnormal"] * 4, n_sets=2, n_conflicts=1
    ),
    "slides": lambda _: figures.patches_per_slide(SLIDES, LABELS),
    "many slides": lambda _: figures.patches_per_slide(MANY_SLIDES, np.ones(200, dtype=np.uint8)),
    "blank": lambda _: galleries.blank_gallery(
        PIXELS[:4], PIXELS[4:8], captions=["1"] * 8, n_white=1, n_black=0
    ),
    "blurred": lambda _: galleries.blur_gallery(
        PIXELS, captions=["1"] * 11, n_blurred=1, n=11, share_of_median=0.02
    ),
    "duplicates": lambda _: galleries.duplicate_gallery(
        PIXELS[:2], captions=["a × 2\nnormal"] * 2, n_sets=2, n_conflicts=0, n_across=1
    ),
    "reference": lambda s: figures.channel_reference(
        exploration.channel_statistics(s.histogram.sum(axis=0)), None
    ),
}


@pytest.mark.parametrize("name", EVERY_FIGURE)
def test_figure_renders(name, survey):
    """Warnings are errors: a glyph that is missing or a layout that collapses fails here."""
    buffer = io.BytesIO()
    EVERY_FIGURE[name](survey).savefig(buffer, format="png")
    assert buffer.getvalue().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", EVERY_FIGURE)
def test_title_fits_into_the_picture(name, survey):
    """Titles are set by hand at the left edge: a long one would be cut off."""
    figure = EVERY_FIGURE[name](survey)
    figure.draw_without_rendering()
    for text in figure.texts:
        assert text.get_window_extent().x1 <= figure.bbox.x1


def test_class_colours_stay_apart_from_each_other_in_grey():
    """Printed without colour, the two classes must still be told apart."""
    from matplotlib.colors import to_rgb

    greys = [np.dot(to_rgb(colour), [0.299, 0.587, 0.114]) for colour in CLASS_COLOURS]
    assert abs(greys[0] - greys[1]) > 0.08


def test_slides_title_counts_by_hand():
    slides = pd.Series(["a", "a", "b", "c", None])
    labels = np.array([0, 1, 0, 1, 1], dtype=np.uint8)
    texts = [text.get_text() for text in figures.patches_per_slide(slides, labels).texts]
    assert texts[0] == "3 slides: 1 hold both classes, 1 only normal, 1 only tumour patches"
    assert "1 patches of unknown slide" in texts[1]


def test_largest_shift_by_hand():
    """Of 0 0 0 0 | 0 0 | 3 3, mean 0.75, sd √(2·3²/8 − 0.75²) = 1.299: 3 / 1.299 = 2.309."""
    splits = pd.Series(["train"] * 4 + ["val"] * 2 + ["holdout"] * 2)
    features = pd.DataFrame({"a": [1.0] * 8, "b": [0, 0, 0, 0, 0, 0, 3, 3]})
    shift = largest_shift(features, splits)
    assert (shift.split, shift.feature, shift.is_large) == ("holdout", "b", True)
    assert shift.standardised == pytest.approx(2.3094, abs=1e-4)
    assert not largest_shift(features[["a"]], splits).is_large
