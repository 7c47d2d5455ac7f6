"""Splits: whole groups, every patch once, class fractions near, the same for a seed."""

import numpy as np
import pandas as pd
import pytest

from src.data.splits import (
    SPLITS,
    SplitError,
    split_folds,
    split_groups,
)

GOLDEN_SINGLES = {"train": [0, 2, 3], "val": [6, 15, 17], "holdout": [1, 5, 16]}
GOLDEN_SLIDES = {"val": ["s003", "s005", "s019"], "holdout": ["s008", "s013", "s017"]}


def patches(*, n_slides, per_slide, tumour_fraction, seed=0):
    """Table of ``n_slides`` slides; ``tumour_fraction`` is of each slide, or one for all."""
    rng = np.random.default_rng(seed)
    slide = np.repeat(np.arange(n_slides), per_slide)
    fraction = np.broadcast_to(tumour_fraction, n_slides)[slide]
    return pd.DataFrame(
        {
            "id": [f"{number:040x}" for number in rng.permutation(len(slide))],
            "slide": [f"s{number:03d}" for number in slide],
            "group": [f"s{number:03d}" for number in slide],
            "label": (rng.random(len(slide)) < fraction).astype(np.uint8),
        }
    )


def singles(n, *, tumour_fraction=0.4):
    return patches(n_slides=n, per_slide=1, tumour_fraction=tumour_fraction)


def split(table, *, val=0.15, holdout=0.15, seed=1, train_only=None):
    splits = split_groups(
        labels=table["label"].to_numpy(dtype=np.uint8),
        groups=table["group"].to_numpy(dtype="U"),
        train_only=np.zeros(len(table), dtype=bool) if train_only is None else train_only,
        val_fraction=val,
        holdout_fraction=holdout,
        seed=seed,
    )
    return table.assign(split=splits)


def tumour_fractions(table):
    return table.groupby("split")["label"].mean()


@pytest.mark.parametrize("seed", range(5))
def test_no_group_in_two_splits_and_every_patch_in_one(seed):
    table = split(patches(n_slides=20, per_slide=40, tumour_fraction=0.4), seed=seed)
    assert table.groupby("group")["split"].nunique().max() == 1
    assert set(table["split"]) == set(SPLITS)


def test_first_patches_for_a_seed_are_golden():
    """A silent change of the algorithm or of the order of draws would change every result."""
    table = split(singles(200), seed=1).sort_values("id")
    first = {name: table[table["split"] == name]["id"].iloc[:3].tolist() for name in SPLITS}
    short = {name: [int(i, 16) for i in ids] for name, ids in first.items()}
    assert short == GOLDEN_SINGLES
    table = split(patches(n_slides=20, per_slide=40, tumour_fraction=0.4), seed=1)
    slides = {name: sorted(set(table[table["split"] == name]["slide"])) for name in SPLITS[1:]}
    assert slides == GOLDEN_SLIDES


def test_row_order_is_irrelevant():
    table = patches(n_slides=30, per_slide=10, tumour_fraction=0.4)
    table = pd.concat([table, singles(100).assign(group=lambda t: "p" + t["id"])])
    table["id"] = [f"{number:040x}" for number in range(len(table))]
    shuffled = table.sample(frac=1, random_state=3)
    assert (
        split(shuffled).sort_values("id")["split"].tolist()
        == split(table).sort_values("id")["split"].tolist()
    )


@pytest.mark.parametrize("n", [10, 99, 1_000])
def test_fractions_that_do_not_add_up_in_binary_use_every_patch(n):
    """0.7 + 0.2 + 0.1 != 1 in floats; a patch too few or too many would have no split."""
    table = split(singles(n, tumour_fraction=0.5), val=0.2, holdout=0.1)
    counts = table["split"].value_counts()
    assert counts.sum() == n
    assert counts["train"] == pytest.approx(0.7 * n, abs=1.5)
    assert counts["val"] == pytest.approx(0.2 * n, abs=1.5)
    assert counts["holdout"] == pytest.approx(0.1 * n, abs=1.5)


def test_single_patches_are_stratified_to_the_patch():
    table = split(singles(1_000))
    for _, rows in table.groupby("label"):
        shares = rows["split"].value_counts() / len(rows)
        assert shares["val"] == pytest.approx(0.15, abs=0.002)
        assert shares["holdout"] == pytest.approx(0.15, abs=0.002)


@pytest.mark.parametrize("seed", range(5))
def test_class_fractions_stay_near_when_slides_hold_both_classes(seed):
    fractions = np.linspace(0.05, 0.85, 20)
    table = split(patches(n_slides=20, per_slide=80, tumour_fraction=fractions), seed=seed)
    overall = table["label"].mean()
    assert (tumour_fractions(table) - overall).abs().max() < 0.05
    sizes = table["split"].value_counts(normalize=True)
    assert sizes["val"] == pytest.approx(0.15, abs=0.03)
    assert sizes["holdout"] == pytest.approx(0.15, abs=0.03)


@pytest.mark.parametrize("seed", range(5))
def test_classes_are_counted_over_the_whole_slide_not_its_first_patch(seed):
    """First patches that say nothing of their slides: stratifying by them fails here."""
    number = np.repeat(np.arange(20), 50)
    table = patches(n_slides=20, per_slide=50, tumour_fraction=0.0)
    table["id"] = [f"{position:040x}" for position in range(len(table))]
    table["label"] = (number % 2).astype(np.uint8)
    first = np.arange(len(table)) % 50 == 0
    table.loc[first, "label"] = (number[first] // 2 % 2).astype(np.uint8)
    table = split(table, val=0.2, holdout=0.2, seed=seed)
    slides = table[number % 2 == 1].groupby("split")["slide"].nunique()
    assert slides.to_dict() == {"train": 6, "val": 2, "holdout": 2}


def test_slides_of_very_different_size_come_near_the_fractions():
    rng = np.random.default_rng(4)
    table = patches(
        n_slides=200,
        per_slide=rng.lognormal(3, 1, 200).astype(int) + 2,
        tumour_fraction=np.where(np.arange(200) < 118, 0.0, 0.9),
    )
    table = split(table)
    assert table["split"].value_counts(normalize=True)["holdout"] == pytest.approx(0.15, abs=0.005)
    assert (tumour_fractions(table) - table["label"].mean()).abs().max() < 0.005


def test_large_slides_are_not_kept_for_train():
    """Dealing the largest first gives them to train: holdout's slides would all be small."""
    table = patches(n_slides=60, per_slide=np.arange(2, 62), tumour_fraction=0.5)
    sizes = []
    for seed in range(8):
        result = split(table, seed=seed)
        holdout = result[result["split"] == "holdout"]
        sizes.append(len(holdout) / holdout["slide"].nunique())
    assert np.mean(sizes) == pytest.approx(len(table) / 60, rel=0.15)


def test_train_only_groups_never_leave_train_and_count_towards_it():
    table = patches(n_slides=30, per_slide=20, tumour_fraction=0.4)
    train_only = (table["slide"] < "s009").to_numpy()
    table = split(table, train_only=train_only)
    assert (table.loc[train_only, "split"] == "train").all()
    assert table["split"].value_counts(normalize=True)["train"] == pytest.approx(0.7, abs=0.04)


def test_two_slides_with_tumour_cannot_serve_three_splits():
    fractions = np.where(np.isin(np.arange(40), [3, 17]), 0.5, 0.0)
    with pytest.raises(SplitError, match="would hold no tumour patch: 2 of 40 groups hold any"):
        split(patches(n_slides=40, per_slide=20, tumour_fraction=fractions))


@pytest.mark.parametrize("seed", range(3))
def test_four_mixed_slides_are_enough_and_three_are_not(seed):
    """Catches a holdout of one slide, which evaluate would refuse after hours of training."""
    table = split(patches(n_slides=4, per_slide=20, tumour_fraction=0.5), seed=seed)
    assert table.groupby("split")["slide"].nunique().to_dict() == {
        "train": 1, "val": 1, "holdout": 2,
    }  # fmt: skip
    with pytest.raises(SplitError, match=r"3 groups .* at least 4 .* split\.group_by: patch"):
        split(patches(n_slides=3, per_slide=20, tumour_fraction=0.5), seed=seed)


def test_holdout_gets_a_second_slide_where_one_would_fill_it():
    """Catches one slide of 15 % of the patches being all of holdout."""
    table = patches(n_slides=6, per_slide=[60, 60, 60, 60, 60, 53], tumour_fraction=0.5)
    for seed in range(5):
        slides = split(table, seed=seed).groupby("split")["slide"].nunique()
        assert (slides["holdout"], slides.sum()) == (2, 6)


def test_a_second_slide_is_not_bought_with_a_class():
    """Catches a split left without one of the classes so that holdout gets its second slide."""
    table = patches(n_slides=4, per_slide=20, tumour_fraction=[0.5, 0.5, 0.5, 0.0])
    table = split(table)
    assert (table.groupby("split")["label"].nunique() == 2).all()
    pure = patches(n_slides=6, per_slide=20, tumour_fraction=[1.0, 1.0, 1.0, 0.0, 0.0, 0.0])
    counts = split(pure).groupby("split")["slide"].nunique()
    assert counts.tolist() == [2, 2, 2]


def test_too_few_groups_that_may_leave_train():
    table = patches(n_slides=5, per_slide=10, tumour_fraction=0.5)
    with pytest.raises(SplitError, match=r"only 2 of 5 groups may leave train .* holdout 2"):
        split(table, train_only=(table["slide"] > "s001").to_numpy())
    table = split(table, train_only=(table["slide"] > "s002").to_numpy())
    assert table.groupby("split")["slide"].nunique().to_dict() == {
        "train": 2, "val": 1, "holdout": 2,
    }  # fmt: skip


def rounds(table, *, n_folds=5, seed=1, train_only=None):
    """The split of every patch in every round: (n_folds, n)."""
    return np.stack(
        [
            split_folds(
                labels=table["label"].to_numpy(dtype=np.uint8),
                groups=table["group"].to_numpy(dtype="U"),
                train_only=np.zeros(len(table), bool) if train_only is None else train_only,
                n_folds=n_folds,
                fold=fold,
                seed=seed,
            )
            for fold in range(n_folds)
        ]
    )


def test_every_patch_is_held_out_in_one_round_and_is_val_in_the_round_before():
    """Catches folds that are drawn anew each round: patches in holdout twice, others never."""
    splits = rounds(patches(n_slides=23, per_slide=30, tumour_fraction=0.4))
    assert ((splits == "holdout").sum(axis=0) == 1).all()
    held_out, val = (splits == "holdout").argmax(axis=0), (splits == "val").argmax(axis=0)
    assert ((val + 1) % 5 == held_out).all()


def test_folds_keep_groups_whole_and_classes_near():
    table = patches(n_slides=40, per_slide=30, tumour_fraction=np.linspace(0.1, 0.9, 40))
    for splits in rounds(table, n_folds=4):
        part = table.assign(split=splits)
        assert part.groupby("group")["split"].nunique().max() == 1
        assert part.groupby("split")["label"].mean().between(0.44, 0.56).all()
        assert part["split"].value_counts(normalize=True)["holdout"] == pytest.approx(
            0.25, abs=0.03
        )


def test_more_folds_than_groups_with_tumour_are_refused():
    table = patches(n_slides=10, per_slide=5, tumour_fraction=[1.0] * 3 + [0.0] * 7)
    with pytest.raises(
        SplitError, match=r"no tumour patch: 3 of 10 groups .* lower split\.n_folds"
    ):
        rounds(table, n_folds=4)
    table = patches(n_slides=10, per_slide=8, tumour_fraction=0.5)
    for splits in rounds(table, n_folds=5):
        assert table[splits == "holdout"]["slide"].nunique() == 2
    with pytest.raises(SplitError, match="10 groups may leave train, 6 folds need 2 each"):
        rounds(table, n_folds=6)
