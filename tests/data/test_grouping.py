"""Groups: who must stay on one side of a split."""

import numpy as np
import pandas as pd
import pytest

from src.data.components import connected_components
from src.data.grouping import GroupingError, group_patches
from tests.data.tables import patches_frame


def table_of(ids, slides, digests, **columns):
    frame = patches_frame([0] * len(ids), slides=slides, sha256=digests, **columns)
    return frame.assign(id=pd.array(ids, dtype="str"))


def grouped(ids, slides, digests, *, group_by="slide", **columns):
    grouping = group_patches(table_of(ids, slides, digests, **columns), group_by=group_by, seed=1)
    return grouping, dict(zip(ids, grouping.names.tolist(), strict=True))


def test_group_is_the_slide_where_slides_are_known():
    grouping, groups = grouped(["a", "b", "c"], ["s1", "s2", "s1"], ["x", "y", "z"])
    assert groups == {"a": "s1", "b": "s2", "c": "s1"}
    assert grouping.slide_disjoint
    assert not grouping.train_only.any()


def test_identical_pixels_join_two_slides():
    """Grouping by slide alone would put the same pixels in train and holdout."""
    grouping, groups = grouped(
        ["a", "b", "c", "d"], ["s2", "s1", "s2", "s3"], ["same", "same", "y", "z"]
    )
    assert groups == {"a": "s1", "b": "s1", "c": "s1", "d": "s3"}
    assert grouping.n_slides_joined == 2
    assert grouping.n_duplicates == 2


def test_joins_are_followed_through_a_chain():
    """s1 – s2 by x, s2 – s3 by y: one pass of pairwise merging leaves s1 and s3 apart."""
    _, groups = grouped(["a", "b", "c", "d"], ["s3", "s2", "s2", "s1"], ["y", "y", "x", "x"])
    assert set(groups.values()) == {"s1"}


def test_without_slides_identical_patches_share_a_group_named_by_the_first_id():
    grouping, groups = grouped(
        ["b", "c", "a"], [None, None, None], ["x", "y", "x"], group_by="patch"
    )
    assert groups == {"a": "patch:a", "b": "patch:a", "c": "patch:c"}
    assert not grouping.slide_disjoint
    assert not grouping.train_only.any(), "without any slide nothing is kept back in train"


def test_unknown_slides_are_own_groups_and_train_only():
    """Filling gaps with some slide, or letting them into holdout, leaks (trap 2)."""
    grouping, groups = grouped(["a", "b", "c"], ["s1", None, None], ["x", "y", "z"])
    assert groups == {"a": "s1", "b": "patch:b", "c": "patch:c"}
    assert grouping.train_only.tolist() == [False, True, True]
    assert grouping.n_without_slide == 2
    assert not grouping.slide_disjoint, "an unknown patch may come from a slide in holdout"


def test_a_slide_with_the_pixels_of_an_unknown_patch_is_train_only_as_a_whole():
    grouping, groups = grouped(["a", "b", "c"], ["s1", "s1", None], ["x", "y", "x"])
    assert set(groups.values()) == {"s1"}
    assert grouping.train_only.all()


def test_names_do_not_depend_on_row_order():
    rng = np.random.default_rng(0)
    ids = [f"{i:03d}" for i in range(200)]
    slides = [None if i % 7 == 0 else f"s{i % 20}" for i in range(200)]
    digests = [f"d{i // 2 if i < 20 else i}" for i in range(200)]
    _, expected = grouped(ids, slides, digests)
    order = rng.permutation(200)
    _, shuffled = grouped(*([column[i] for i in order] for column in (ids, slides, digests)))
    assert shuffled == expected


def test_equal_texts_in_different_keys_do_not_connect():
    """A slide called like another patch's digest is a coincidence, not a link."""
    components = connected_components([pd.Series(["k", "l"]), pd.Series(["m", "k"])])
    assert components[0] != components[1]


def test_a_frame_with_gaps_in_its_index_is_grouped_by_position():
    """A filtered table keeps its old index; aligning on it would shift the groups."""
    table = table_of(["a", "b", "c"], ["s1", "s2", "s1"], ["x", "y", "z"])
    table.index = [7, 2, 5]
    names = group_patches(table, group_by="slide", seed=1).names
    assert names.tolist() == ["s1", "s2", "s1"]


def test_near_duplicates_share_a_group_in_every_mode():
    """Catches a turned or brightened copy in holdout of a patch in train."""
    ids, digests = ["a", "b", "c", "d"], ["w", "x", "y", "z"]
    hashes = [0b1110, 0b0110, 2**40 - 2, None]
    for group_by, slides in (("slide", ["s1", "s2", "s3", "s4"]), ("patch", [None] * 4)):
        grouping, groups = grouped(ids, slides, digests, group_by=group_by, phash=hashes)
        assert groups["a"] == groups["b"]
        assert len(set(groups.values())) == 3
        assert grouping.n_near_duplicates == 2


def stained(n_per_stain, n_stains=3):
    """Densities (n, 9) of patches in ``n_stains`` stains, ``n_per_stain`` of each in turn."""
    normals = np.eye(3)[:n_stains]
    covariances = 0.05 * np.eye(3) - 0.04 * normals[:, :, None] * normals[:, None]
    density = np.full((n_per_stain * n_stains, 9), 0.25)
    density[:, 3:] = np.tile(covariances[:, *np.triu_indices(3)], (n_per_stain, 1))
    return density


def test_a_look_alike_moves_to_the_stain_cluster_of_most_and_joins_none():
    """Catches one pair across two clusters making both one group of a tenth of the patches."""
    ids = [f"{i:02d}" for i in range(30)]
    digests = [f"d{i}" for i in range(30)]
    digests[0] = digests[1] = digests[3] = "same"  # 0 and 3 are of one stain, 1 of another
    hashes = [None] * 30
    hashes[2], hashes[5], hashes[4] = 6, 6, 6  # as many turned copies as can be: 2 and 5, 4
    density = stained(10)
    density[[2, 4, 5], :3] = 0.25
    grouping, groups = grouped(
        ids, [None] * 30, digests, group_by="stain", density=density, phash=hashes
    )
    others = {i: groups[f"{i:02d}"] for i in range(6, 30)}
    assert len(set(others.values())) == 3
    assert groups["00"] == groups["01"] == groups["03"] == others[6]
    assert groups["02"] == groups["05"] == others[8]
    assert grouping.n_slides_joined == 0
    assert grouping.n_duplicates == 3


def test_blank_patches_have_no_cluster_and_stay_in_train():
    """Catches a blank patch in holdout that passes for a group of its own."""
    flags = ["blank_white", "blank_white", "blank_black", *[""] * 27]
    ids = [f"{i:02d}" for i in range(30)]
    digests = ["white", "white", *(f"d{i}" for i in range(28))]
    grouping, groups = grouped(
        ids, [None] * 30, digests, group_by="stain", density=stained(10), flags=flags
    )
    assert [groups[i] for i in ids[:3]] == ["patch:00", "patch:00", "patch:02"]
    assert grouping.train_only.tolist() == [True] * 3 + [False] * 27
    assert grouping.n_without_stain == 3
    patch, _ = grouped(ids, [None] * 30, digests, group_by="patch", flags=flags)
    assert not patch.train_only.any(), "among single patches a blank one is one of them"


def test_auto_is_slide_where_any_is_known_and_stain_otherwise():
    assert grouped(["a", "b"], ["s1", None], ["x", "y"], group_by="auto")[0].group_by == "slide"
    grouping, _ = grouped(["a", "b"], [None, None], ["x", "y"], group_by="auto")
    assert grouping.group_by == "stain"
    assert not grouping.slide_disjoint


def test_slide_without_any_slide_is_refused_and_names_the_ways_out():
    with pytest.raises(GroupingError, match=r"ingest\.slides, or set split\.group_by to stain"):
        grouped(["a", "b"], [None, None], ["x", "y"], group_by="slide")


def test_stain_groups_never_claim_to_be_slides():
    """Catches a stand-in that reads like the real thing, even where slides are known."""
    slides = [f"s{i % 2}" for i in range(40)]
    ids = [f"{i:02d}" for i in range(40)]
    grouping, groups = grouped(ids, slides, [f"d{i}" for i in range(40)], group_by="stain")
    assert all(name.startswith("stain:") for name in groups.values())
    assert not grouping.slide_disjoint
    assert not grouping.train_only.any()
