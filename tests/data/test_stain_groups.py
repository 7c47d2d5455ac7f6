"""Stain clusters: patches of one stain together, whatever the order of the rows."""

import numpy as np
import pytest

from src.data.flags import BLANK_WHITE
from src.data.stain_groups import number_of_clusters, stain_clusters, stain_plane_normals
from tests.data.tables import patches_frame


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


def test_blank_patches_have_no_stain():
    frame = slides_frame()
    frame.loc[3, "flags"] = BLANK_WHITE
    clusters = stain_clusters(frame, seed=1)
    assert clusters.isna().to_numpy().nonzero()[0].tolist() == [3]


def test_number_of_clusters_at_both_ends():
    assert [number_of_clusters(n) for n in (10, 400, 1_600, 220_025)] == [10, 10, 20, 200]
