"""Splits: whole groups, every patch once, class fractions near, the same for a seed."""

import numpy as np
import pandas as pd
import pytest

from src.data.splitting import (
    SPLITS,
    Fractions,
    SplitError,
    audit_leaks,
    split_folds,
    split_groups,
    summarise_splits,
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
        fractions=Fractions(val=val, holdout=holdout),
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


def test_another_seed_gives_another_split():
    table = singles(300)
    assert (split(table, seed=1)["split"] != split(table, seed=2)["split"]).any()


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


def test_more_train_only_patches_than_train_wants_still_fill_val_and_holdout():
    table = patches(n_slides=30, per_slide=20, tumour_fraction=0.4)
    train_only = (table["slide"] < "s024").to_numpy()
    counts = split(table, train_only=train_only).groupby("split")["slide"].nunique()
    assert counts["val"] == 3
    assert counts["holdout"] == 3


def test_the_few_slides_with_tumour_are_spread_over_the_splits():
    """Three tumour slides among forty: each split needs one."""
    fractions = np.where(np.isin(np.arange(40), [3, 17, 30]), 0.5, 0.0)
    table = split(patches(n_slides=40, per_slide=20, tumour_fraction=fractions))
    assert (table.groupby("split")["label"].sum() > 0).all()


def test_two_slides_with_tumour_cannot_serve_three_splits():
    fractions = np.where(np.isin(np.arange(40), [3, 17]), 0.5, 0.0)
    with pytest.raises(SplitError, match="would hold no tumour patch: 2 of 40 groups hold any"):
        split(patches(n_slides=40, per_slide=20, tumour_fraction=fractions))


def test_three_mixed_slides_are_enough_and_two_are_not():
    table = split(patches(n_slides=3, per_slide=20, tumour_fraction=0.5))
    assert table.groupby("split")["slide"].nunique().tolist() == [1, 1, 1]
    with pytest.raises(SplitError, match="2 groups of labelled patches"):
        split(patches(n_slides=2, per_slide=20, tumour_fraction=0.5))


def test_six_single_patches_are_enough():
    table = singles(6).assign(label=np.array([0, 1, 0, 1, 0, 1], dtype=np.uint8))
    assert (split(table).groupby("split")["label"].nunique() == 2).all()


def test_one_class_is_refused():
    with pytest.raises(SplitError, match="no tumour patch"):
        split(singles(50, tumour_fraction=0.0))


def test_too_few_groups_that_may_leave_train():
    table = patches(n_slides=5, per_slide=10, tumour_fraction=0.5)
    with pytest.raises(SplitError, match="only 1 of 5 groups may leave train"):
        split(table, train_only=(table["slide"] > "s000").to_numpy())


def test_summary_counts_by_hand():
    labelled = pd.DataFrame({"id": list("abcdef"), "label": [0, 1, 1, 0, 1, 0]})
    written = pd.DataFrame(
        {
            "id": list("abcdef"),
            "split": ["train"] * 4 + ["val", "holdout"],
            "group": ["g", "g", "h", "i", "j", "k"],
        }
    )
    assert summarise_splits(labelled, written)["train"] == {
        "n_patches": 4,
        "n_tumour": 2,
        "tumour_fraction": 0.5,
        "n_groups": 3,
        "n_groups_with_normal": 2,
        "n_groups_with_tumour": 2,
        "min_groups_per_class": 2,
    }


def test_audit_counts_each_kind_of_leak():
    """An audit that always says 0 would hide the leak it is for."""
    labelled = pd.DataFrame(
        {
            "id": ["a", "b", "c", "d"],
            "slide": ["s", "s", None, None],
            "sha256": ["1", "2", "2", "3"],
            "near": [7, 7, None, None],
        }
    )
    written = pd.DataFrame(
        {"id": ["a", "b", "c"], "split": ["train", "val", "train"], "group": ["g", "g", "h"]}
    )
    counted = {
        "groups_crossing_splits": 1,
        "identical_pixels_crossing_splits": 1,
        "near_duplicates_crossing_splits": 1,
        "patches_not_in_exactly_one_split": 1,
    }
    assert audit_leaks(labelled, written, by_slide=False) == counted
    by_slide = audit_leaks(labelled, written, by_slide=True)
    assert by_slide == counted | {"slides_crossing_splits": 1}


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


def test_single_patches_fold_to_the_patch():
    splits = rounds(singles(100), n_folds=5)
    assert ((splits == "holdout").sum(axis=1) == 20).all()


def test_train_only_groups_are_in_no_holdout():
    table = patches(n_slides=20, per_slide=10, tumour_fraction=0.5)
    pinned = table["group"].isin(["s000", "s001"]).to_numpy()
    splits = rounds(table, n_folds=3, train_only=pinned)
    assert (splits[:, pinned] == "train").all()
    assert ((splits[:, ~pinned] == "holdout").sum(axis=0) == 1).all()


def test_more_folds_than_groups_with_tumour_are_refused():
    table = patches(n_slides=10, per_slide=5, tumour_fraction=[1.0] * 3 + [0.0] * 7)
    with pytest.raises(
        SplitError, match=r"no tumour patch: 3 of 10 groups .* lower split\.n_folds"
    ):
        rounds(table, n_folds=4)
    with pytest.raises(SplitError, match="10 groups may leave train, 11 folds need as many"):
        rounds(table, n_folds=11)
