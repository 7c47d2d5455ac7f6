"""Generated patches: the label follows the centre, shapes tell it, colours don't."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.ndimage import grey_opening
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import roc_auc_score

from src.drawing.patches import Patches, draw_chunk
from src.drawing.plan import BESIDE, BLACK, NORMAL, TUMOUR, WHITE, SubsetPlan, plan_subset
from src.evaluation.baseline import colour_histograms, fit_baselines

N_PATCHES, N_SLIDES = 800, 24


@pytest.fixture(scope="module")
def plan() -> SubsetPlan:
    return plan_subset(seed=1, subset="train", n_patches=N_PATCHES, n_slides=N_SLIDES)


@pytest.fixture(scope="module")
def drawn(plan: SubsetPlan) -> Patches:
    chunks = [draw_chunk(chunk) for chunk in plan.chunks()]
    return Patches(
        np.concatenate([chunk.pixels for chunk in chunks]),
        np.concatenate([chunk.tumour for chunk in chunks]),
    )


def test_label_is_1_exactly_where_tumour_reaches_the_centre(plan: SubsetPlan, drawn: Patches):
    """Catches a label taken from the whole patch, or a centre off by a row or column."""
    reaches = drawn.tumour[:, 32:64, 32:64].any(axis=(1, 2))
    np.testing.assert_array_equal(plan.labels, reaches)


def test_normal_patches_beside_tumour_show_it(plan: SubsetPlan, drawn: Patches):
    """Catches hard negatives without tumour: the task would be `any tumour in the patch`."""
    beside = plan.kind == BESIDE
    assert drawn.tumour[beside].any(axis=(1, 2)).mean() > 0.95
    assert 0.15 < beside.sum() / (plan.labels == 0).sum() < 0.25


def test_the_same_patches_without_tumour_have_the_same_colours(plan: SubsetPlan):
    """Catches any way from label to colour: not a pixel's colour may change, only its place."""
    chunk = next(plan.chunks())
    colours = []
    for kind in (TUMOUR, NORMAL):
        pixels = draw_chunk(replace(chunk, kind=np.full_like(chunk.kind, kind))).pixels
        colours.append(pixels.reshape(len(chunk), -1, 3) @ (1 << 16, 1 << 8, 1))  # as one number
    assert not np.array_equal(*colours)
    np.testing.assert_array_equal(*(np.sort(colour, axis=1) for colour in colours))


def test_colour_tells_nothing_on_other_slides(plan: SubsetPlan, drawn: Patches):
    """Catches a label that colour gives away to a linear model or, as it once did, to trees."""
    histograms = colour_histograms(drawn.pixels, np.arange(N_PATCHES))
    is_train = plan.slide >= 8
    floors = fit_baselines(histograms[is_train], plan.labels[is_train], seed=1)
    forest = RandomForestClassifier(100, min_samples_leaf=3, random_state=1)
    forest.fit(histograms[is_train], plan.labels[is_train])
    for model in (*floors.values(), forest):
        probability = model.predict_proba(histograms[~is_train])[:, 1]
        assert roc_auc_score(plan.labels[~is_train], probability) < 0.65


def test_size_of_nuclei_tells(plan: SubsetPlan, drawn: Patches):
    """Catches types of nuclei swapped, or of one size: what a disc of 4 px radius fits into is
    darker in tumour, relative to the patch's own contrast."""
    part = slice(0, 400)
    density = 255 - drawn.pixels[part, 24:72, 24:72, 0].astype(np.float32)
    y, x = np.mgrid[-4:5, -4:5]
    opened = grey_opening(density, footprint=(x**2 + y**2 <= 16.5)[None])
    lost = (density - opened).mean(axis=(1, 2)) / (density.std(axis=(1, 2)) + 1)
    is_drawn = ~np.isin(plan.kind[part], (WHITE, BLACK))
    assert roc_auc_score(plan.labels[part][is_drawn], -lost[is_drawn]) > 0.8


def test_blank_patches_are_constant_and_normal(plan: SubsetPlan, drawn: Patches):
    """Catches blanks labelled tumour or drawn over."""
    for kind, level in ((WHITE, 255), (BLACK, 0)):
        blank = plan.kind == kind
        assert blank.any()
        assert (drawn.pixels[blank] == level).all()
        assert not plan.labels[blank].any()


def test_a_chunk_drawn_alone_equals_the_same_chunk_drawn_among_others(
    plan: SubsetPlan, drawn: Patches
):
    """Catches randomness carried from one chunk to the next."""
    third = list(plan.chunks())[2]
    np.testing.assert_array_equal(draw_chunk(third).pixels, drawn.pixels[80:120])
