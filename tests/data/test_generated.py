"""Generated patches: what the label means, what the plan promises, what colour gives away."""

import numpy as np
import pytest

from src.data.generated import (
    BLACK,
    FEW,
    OUTSIDE,
    TUMOUR,
    WHITE,
    Patches,
    SubsetPlan,
    draw_chunk,
    plan_subset,
)
from src.data.stain import Stains, mix_stains

N_PATCHES, N_SLIDES = 480, 10


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
    """Catches a label taken from the whole patch, or a centre off by one row or column."""
    reaches = drawn.tumour[:, 32:64, 32:64].any(axis=(1, 2))
    np.testing.assert_array_equal(plan.labels, reaches)


def test_tumour_lies_near_the_centre_of_a_good_share_of_normal_patches(
    plan: SubsetPlan, drawn: Patches
):
    """Catches hard negatives that hold no tumour: the task would be `any tumour in the patch`."""
    outside = plan.kind == OUTSIDE
    assert drawn.tumour[outside].any(axis=(1, 2)).all()
    assert 0.12 < outside.sum() / (plan.labels == 0).sum() < 0.28


def test_few_cells_cover_little_and_a_nest_covers_much(plan: SubsetPlan, drawn: Patches):
    """Catches extents swapped between kinds."""
    covered = drawn.tumour.mean(axis=(1, 2))
    assert np.median(covered[plan.kind == FEW]) < 0.15
    assert np.median(covered[plan.kind == TUMOUR]) > 0.4


def test_blank_patches_are_constant_normal_and_of_one_slide(plan: SubsetPlan, drawn: Patches):
    """Catches blanks labelled tumour, and equal pixels on two slides, which would tie them."""
    for kind, level in ((WHITE, 255), (BLACK, 0)):
        blank = plan.kind == kind
        assert blank.sum() >= 1
        assert (drawn.pixels[blank] == level).all()
        assert not plan.labels[blank].any()
    assert len(set(plan.slide[np.isin(plan.kind, (WHITE, BLACK))])) == 1


@pytest.mark.parametrize(("n_patches", "n_slides"), [(20, 2), (40, 20), (1600, 20), (401, 7)])
def test_every_slide_has_both_classes(n_patches: int, n_slides: int):
    """Catches slides of one class: splitting by slide couldn't keep the balance."""
    plan = plan_subset(seed=3, subset="train", n_patches=n_patches, n_slides=n_slides)
    assert len(plan) == n_patches
    for slide in range(n_slides):
        assert set(plan.labels[plan.slide == slide]) == {0, 1}


def test_as_many_slides_as_patches_leaves_none_empty():
    """Catches a slide without patches when each can have one only."""
    plan = plan_subset(seed=1, subset="test", n_patches=5, n_slides=5)
    assert sorted(plan.slide) == [0, 1, 2, 3, 4]


def test_share_of_tumour_is_kaggles_and_differs_between_slides():
    """Catches a balance that drifts, and slides that all look alike."""
    plan = plan_subset(seed=1, subset="train", n_patches=20_000, n_slides=20)
    shares = [plan.labels[plan.slide == slide].mean() for slide in range(20)]
    assert 0.38 < plan.labels.mean() < 0.43
    assert 0.19 < min(shares) < 0.25
    assert 0.56 < max(shares) < 0.65


def test_ids_are_40_hex_and_differ_between_patches_subsets_and_seeds(plan: SubsetPlan):
    """Catches an id that is reused, which ingest refuses."""
    ids = [plan.patch_id(i) for i in range(len(plan))]
    test = plan_subset(seed=1, subset="test", n_patches=N_PATCHES, n_slides=N_SLIDES)
    other = plan_subset(seed=2, subset="train", n_patches=N_PATCHES, n_slides=N_SLIDES)
    every = {*ids, *map(test.patch_id, range(len(test))), *map(other.patch_id, range(len(other)))}
    assert len(every) == 3 * N_PATCHES
    assert all(len(i) == 40 and set(i) <= set("0123456789abcdef") for i in every)
    assert [i for chunk in plan.chunks() for i in chunk.ids()] == ids


def test_a_chunk_drawn_alone_equals_the_same_chunk_drawn_among_others(
    plan: SubsetPlan, drawn: Patches
):
    """Catches randomness carried from one chunk to the next."""
    third = list(plan.chunks())[2]
    np.testing.assert_array_equal(draw_chunk(third).pixels, drawn.pixels[80:120])


def test_stains_mix_by_beer_lambert():
    """By hand: 200 · e^−(1·ln 2 + 2·0) = 100 in red, 200 · e^−(0 + 2·ln 2) = 50 in green."""
    ln2 = np.float32(np.log(2))
    stains = Stains(
        haematoxylin=np.array([[ln2, 0, 0]], np.float32),
        eosin=np.array([[0, ln2, 0]], np.float32),
        light=np.full((1, 3), 200, np.float32),
    )
    one, two = np.full((1, 1, 1), 1, np.float32), np.full((1, 1, 1), 2, np.float32)
    np.testing.assert_allclose(mix_stains(one, two, stains), [[[[100, 50, 200]]]], rtol=1e-6)


def test_tumour_nuclei_are_larger_but_colour_does_not_tell(plan: SubsetPlan, drawn: Patches):
    """Catches a class that colour gives away, and one that texture doesn't: both by logistic
    regression, whole slides held out."""
    colour = _auroc(_colour_histograms(drawn.pixels), plan)
    texture = _auroc(_granulometry(drawn.pixels), plan)
    assert colour < 0.70
    assert texture > 0.88


def _auroc(features: np.ndarray, plan: SubsetPlan) -> float:
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import GroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2000))
    scores = cross_val_predict(
        model,
        features,
        plan.labels,
        groups=plan.slide,
        cv=GroupKFold(5),
        method="decision_function",
    )
    return float(roc_auc_score(plan.labels, scores))


def _colour_histograms(pixels: np.ndarray) -> np.ndarray:
    bins = (pixels // 16).reshape(len(pixels), -1, 3)
    return np.concatenate([(bins == b).mean(axis=1) for b in range(16)], axis=1)


def _granulometry(pixels: np.ndarray) -> np.ndarray:
    """Density that an opening by a disc of each radius takes away from the centre 40 × 40 px."""
    from scipy.ndimage import gaussian_filter, grey_opening

    red = pixels[:, 18:78, 18:78, 0]
    density = gaussian_filter(-np.log((red + np.float32(1)) / 256), (0, 0.6, 0.6))
    spread = density.std(axis=(1, 2)) + 0.05
    features = []
    for radius in (2, 3, 4, 5):
        y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
        opened = grey_opening(density, footprint=(x**2 + y**2 <= radius**2 + 0.5)[None])
        lost = (density - opened)[:, 10:50, 10:50].mean(axis=(1, 2))
        features.append(np.log(lost / spread + 1e-3))
        density = opened
    return np.stack(features, axis=1)
