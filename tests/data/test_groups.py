"""Groups: who must stay on one side of a split, by slide, pixels, likeness or stain."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from src.data.groups import (
    N_STAINS,
    GroupingError,
    connected_components,
    group_patches,
    near_duplicate_pairs,
    near_duplicate_sets,
    number_of_clusters,
    stain_clusters,
    stain_names,
    stain_plane_normals,
)
from src.data.measurements import (
    MOMENT_COLUMNS,
    density_moments,
    optical_density,
    orientations,
)
from tests.data.tables import patches_frame


def table_of(ids, slides, digests, **columns):
    frame = patches_frame([0] * len(ids), slides=slides, sha256=digests, **columns)
    return frame.assign(id=pd.array(ids, dtype="str"))


def grouped(ids, slides, digests, *, group_by="slide", **columns):
    grouping = group_patches(table_of(ids, slides, digests, **columns), group_by=group_by, seed=1)
    return grouping, dict(zip(ids, grouping.names.tolist(), strict=True))


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


def random_hashes(n, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(1, 2**63, n, dtype=np.uint64) * np.uint64(2)


def with_flipped_bits(hashes, n_bits, seed=0):
    rng = np.random.default_rng(seed)
    flips = [sum(1 << int(b) for b in rng.choice(np.arange(1, 64), n_bits, False)) for _ in hashes]
    return hashes ^ np.array(flips, dtype=np.uint64)


def by_brute_force(hashes, max_distance):
    distance = np.bitwise_count(hashes[:, None, None] ^ orientations(hashes)[None]).min(axis=2)
    return {(i, j) for i, j in np.argwhere(distance <= max_distance).tolist() if i < j}


def test_pairs_are_those_of_brute_force():
    """Catches a band that is skipped, and a pair met from one side only."""
    base = random_hashes(60)
    hashes = np.concatenate(
        [base, *(with_flipped_bits(orientations(base)[:, k], k, seed=k) for k in range(8))]
    )
    hashes = np.random.default_rng(3).permutation(np.unique(hashes))
    for max_distance in (0, 1, 4, 6):
        pairs = near_duplicate_pairs(hashes, max_distance=max_distance)
        assert set(map(tuple, pairs.tolist())) == by_brute_force(hashes, max_distance)


def test_many_equal_hashes_make_few_pairs():
    """Catches 10,000 copies of one patch making 50 million pairs."""
    pairs = near_duplicate_pairs(np.full(10_000, 6, np.uint64), max_distance=4)
    assert len(pairs) == 9_999


def test_both_sides_of_what_is_measured_and_documented():
    """Catches another MAX_DISTANCE or tolerance of colours than docs/grouping.md has measured."""
    for n_bits, expected in ((3, 2), (4, 0)):
        base = random_hashes(1)
        pair = [int(base[0]), int(with_flipped_bits(base, n_bits)[0])]
        assert near_duplicate_sets(patches_frame([0, 0], phash=pair)).notna().sum() == expected
    for apart, expected in ((0.0399, 2), (0.0401, 0)):
        density = np.full((2, 9), 0.25)
        density[1, 1] += apart
        frame = patches_frame([0, 0], phash=[6, 6], density=density)
        assert near_duplicate_sets(frame).notna().sum() == expected


def test_sets_are_followed_through_a_chain_and_unknown_hashes_match_nothing():
    hashes = [0b111110, 0b000110, 2**40 - 2, None, None, 0b000110 ^ (0b111 << 20)]
    frame = patches_frame([0] * 6, phash=hashes)
    keys = near_duplicate_sets(frame, max_distance=3)
    assert keys.isna().tolist() == [False, False, True, True, True, False]
    assert len(set(keys.dropna())) == 1


def test_equal_hashes_of_other_colours_are_a_coincidence():
    """Catches slides joined because two of 220,000 patches share their coarse structure."""
    density = np.full((3, 9), 0.25)
    density[2, 0] = 0.35
    frame = patches_frame([0] * 3, phash=[6, 6, 6], density=density)
    assert near_duplicate_sets(frame).isna().tolist() == [False, False, True]


def covariance(normal, seed):
    """Of densities that vary in the plane at right angles to ``normal``, more in one direction."""
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(np.stack([normal, rng.normal(size=3), rng.normal(size=3)], axis=1))[0]
    variances = [1e-4, *rng.uniform(0.01, 0.05, 2)]
    return (basis * variances) @ basis.T


def slides_frame(n_slides=12, per_slide=25):
    rng = np.random.default_rng(0)
    normals = rng.normal(size=(n_slides, 3))
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    rows, columns = np.triu_indices(3)
    density = np.full((n_slides * per_slide, 9), 0.3)
    for i in range(len(density)):
        density[i, 3:] = covariance(normals[i // per_slide], seed=i)[rows, columns]
    slides = [f"s{i // per_slide}" for i in range(len(density))]
    return patches_frame([0] * len(density), slides=slides, density=density)


def test_normal_is_the_direction_of_least_variance():
    normal = np.array([0.6, 0.8, 0.0])
    rows, columns = np.triu_indices(3)
    found = stain_plane_normals(covariance(normal, seed=1)[rows, columns][None])
    assert found[0] == pytest.approx(normal, abs=1e-9)
    assert stain_plane_normals(covariance(-normal, 1)[rows, columns][None])[0] == pytest.approx(
        normal, abs=1e-9
    )


def test_patches_of_one_stain_are_together_and_of_two_apart():
    frame = slides_frame()
    clusters = stain_clusters(frame, seed=1)
    per_slide = clusters.groupby(frame["slide"]).nunique()
    per_cluster = frame["slide"].groupby(clusters).nunique()
    assert per_slide.max() <= 2
    assert per_cluster.mean() < 1.5


def test_row_order_is_irrelevant_and_the_seed_decides():
    frame = slides_frame()
    expected = stain_clusters(frame, seed=1)
    shuffled = frame.sample(frac=1, random_state=2)
    assert stain_clusters(shuffled, seed=1).reindex(frame.index).equals(expected)
    fewer = stain_clusters(frame, seed=1, n_clusters=4)
    assert stain_clusters(frame, seed=1, n_clusters=4).equals(fewer)
    others = [stain_clusters(frame, seed=seed, n_clusters=4) for seed in range(2, 6)]
    assert any(not other.equals(fewer) for other in others)


def test_number_of_clusters_at_both_ends():
    assert [number_of_clusters(n) for n in (10, 400, 1_600, 220_025)] == [10, 10, 20, 200]


def _patches(n=80, seed=0):
    """Half of them pale, half dark, in other stains; the first is blank."""
    rng = np.random.default_rng(seed)
    dark = np.arange(n) % 2 == 1
    # each kind mixes two stains of its own, so that its densities span a plane of its own
    stains = np.where(
        dark[:, None, None],
        [[0.5, 0.5, 0.7], [0.1, 0.7, 0.7]],
        [[0.65, 0.70, 0.29], [0.07, 0.99, 0.10]],
    )
    amounts = rng.random((n, 16, 16, 2)) * (0.3 + 0.4 * dark[:, None, None, None])
    density = np.einsum("nhwk,nkc->nhwc", amounts, stains)
    pixels = 255 * 10.0**-density
    moments = density_moments(optical_density(np.clip(pixels, 0, 255).astype(np.uint8)))
    table = pd.DataFrame(moments, columns=list(MOMENT_COLUMNS))
    table["id"] = [f"{place:040x}" for place in range(n)]
    table["flags"] = ["blank_white", *[""] * (n - 1)]
    return table, dark


def test_names_tell_the_stains_apart_from_the_palest():
    """Clusters numbered as k-means found them change their name with the seed."""
    patches, dark = _patches()
    names = stain_names(patches, seed=1)
    assert names[1:].notna().all()
    assert pd.isna(names[0])
    assert not set(names[dark]) & set(names[~dark].dropna())
    assert 2 <= names.nunique() <= N_STAINS
    palest, darkest = names.dropna().min(), names.dropna().max()
    assert palest.startswith("A #")
    assert int(palest[3:5], 16) > int(darkest[3:5], 16)
