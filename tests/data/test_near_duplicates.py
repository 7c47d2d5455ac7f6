"""Near-duplicates: exactly those within the distance, in any orientation, and nobody else."""

import numpy as np
import pandas as pd

from src.data.near_duplicates import near_duplicate_pairs, near_duplicate_sets
from src.data.perceptual_hash import orientations
from tests.data.tables import patches_frame


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


def test_both_sides_of_the_distance():
    base = random_hashes(1)
    for n_bits, expected in ((4, True), (5, False)):
        pair = np.concatenate([base, with_flipped_bits(base, n_bits)])
        assert bool(len(near_duplicate_pairs(pair, max_distance=4))) is expected


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


def test_index_is_kept():
    frame = patches_frame([0] * 3, phash=[6, None, 6]).set_index(pd.Index([9, 4, 7]))
    assert near_duplicate_sets(frame).index.tolist() == [9, 4, 7]
