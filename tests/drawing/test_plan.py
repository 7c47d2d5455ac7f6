"""The plan: who gets which patches, before any is drawn."""

from __future__ import annotations

import numpy as np
import pytest

from src.drawing.plan import BLACK, WHITE, plan_subset


@pytest.mark.parametrize(("n_patches", "n_slides"), [(20, 2), (40, 20), (2000, 48), (401, 7)])
def test_every_slide_has_both_classes(n_patches: int, n_slides: int):
    """Catches slides of one class: splitting by slide couldn't keep the balance."""
    plan = plan_subset(seed=3, subset="train", n_patches=n_patches, n_slides=n_slides)
    assert len(plan) == n_patches
    for slide in range(n_slides):
        assert set(plan.labels[plan.slide == slide]) == {0, 1}


def test_as_many_slides_as_patches_leaves_none_empty():
    """Catches a slide without patches when each can have only one."""
    plan = plan_subset(seed=1, subset="test", n_patches=20, n_slides=20)
    assert sorted(plan.slide) == list(range(20))


def test_fraction_of_tumour_is_kaggles_and_differs_between_slides():
    """Catches a balance that drifts, and slides that are all alike."""
    plan = plan_subset(seed=1, subset="train", n_patches=20_000, n_slides=20)
    fractions = [plan.labels[plan.slide == slide].mean() for slide in range(20)]
    assert 0.38 < plan.labels.mean() < 0.43
    assert min(fractions) < 0.25
    assert max(fractions) > 0.55


@pytest.mark.parametrize(("n_slides", "n_white", "n_black"), [(10, 4, 2), (400, 2, 0)])
def test_blank_patches_are_of_one_slide(n_slides: int, n_white: int, n_black: int):
    """Catches equal pixels on two slides, which would tie them together as duplicates: where the
    first slide has too few normal patches, there are fewer blanks."""
    plan = plan_subset(seed=1, subset="train", n_patches=2000, n_slides=n_slides)
    assert np.bincount(plan.kind, minlength=5)[[WHITE, BLACK]].tolist() == [n_white, n_black]
    assert len(set(plan.slide[np.isin(plan.kind, (WHITE, BLACK))])) == 1


def test_ids_are_40_hex_and_differ_between_patches_subsets_and_seeds():
    """Catches an id that is reused, which ingest refuses, and chunks that count from 0 again."""
    plans = [
        plan_subset(seed=seed, subset=subset, n_patches=90, n_slides=3)
        for seed, subset in ((1, "train"), (1, "test"), (2, "train"))
    ]
    ids = [patch_id for plan in plans for patch_id in plan.ids()]
    assert len(set(ids)) == 270
    assert all(len(i) == 40 and set(i) <= set("0123456789abcdef") for i in ids)
    assert [i for chunk in plans[0].chunks() for i in chunk.ids()] == plans[0].ids()
