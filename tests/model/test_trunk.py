"""The frozen trunk: what its activations depend on, and how they reach the tail."""

import numpy as np
import pytest

from src.data.augmentation import build_augmentation
from src.data.batches import apply_views, ordered_batches
from src.model.boundary import Boundary
from src.model.cache import ActivationCache
from src.model.freezing import boundary_layer, cut
from src.model.trunk import Trunk
from src.params import AugmentParams, CacheParams
from src.system.log import get_logger
from tests.model.support import SMALL, labelled, random_patches

pytestmark = pytest.mark.tensorflow
LOG = get_logger("test")
TINY = SMALL.model_copy(update={"backbone": "resnet_tiny"})
ENVIRONMENT = {"tensorflow": "2", "threads": 2, "processor": "a"}
PATCHES = labelled(random_patches(70), [i % 2 for i in range(70)])


def _classifier(**changes):
    import keras

    from src.model.classifier import build_classifier

    keras.utils.set_random_seed(1)
    return build_classifier(TINY.model_copy(update=changes))


def _boundary(model=None, *, depth=0, dtype="float16", environment=None, **changes) -> Boundary:
    classifier = _classifier(**changes)
    return Boundary(
        model or cut(classifier, backbone="resnet_tiny", depth=depth)[0],
        depth=depth,
        cache_params=CacheParams(max_gb=1, dtype=dtype),
        environment={**ENVIRONMENT, **(environment or {})},
    )


def _trunk(boundary: Boundary, folder, *, depth: int = 0) -> Trunk:
    cache = ActivationCache(folder, max_bytes=10**9, log=LOG)
    return Trunk(boundary, depth=depth, cache=cache, log=LOG)


def _features(trunk: Trunk) -> np.ndarray:
    inputs = trunk.inputs(PATCHES, views=1, passes=2)
    inputs.prepare(np.zeros(len(PATCHES), np.int64))
    return np.asarray(inputs(next(ordered_batches(len(PATCHES), batch_size=64))))


def test_each_pooling_has_its_own_features(tmp_path):
    """Catches features of another pooling: it has no weights, so only the architecture differs."""
    for pooling in ("avg", "gem", "avg_max"):
        boundary = _boundary(pooling=pooling)
        expected = boundary.model(PATCHES.pixels[:64], training=False).numpy()
        features = _features(_trunk(boundary, tmp_path))
        np.testing.assert_allclose(features, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "is_same"),
    [
        ({}, True),  # built a second time: Keras numbers other names
        ({"dropout": 0.9}, True),  # in the tail
        ({"pooling": "gem"}, False),
        ({"pooling": "avg_max"}, False),
        ({"centre_crop": 64}, False),
        ({"input_size": 48}, False),
        ({"environment": {"threads": 1}}, False),
        ({"environment": {"processor": "b"}}, False),
        ({"environment": {"python": "4"}}, True),  # computes nothing in a trunk
    ],
    ids=str,
)
def test_what_the_identity_depends_on(change, is_same):
    """Catches stale activations, and activations computed anew for nothing."""
    is_equal = _boundary(**change).identity == _boundary().identity
    assert is_equal == is_same


def test_boundary_weights_and_type_are_in_the_identity():
    """Catches activations of another cut, of other weights, or rounded in another way."""
    boundary = _boundary(depth=2)
    before = boundary.identity
    assert _boundary(depth=3).identity["architecture"] != before["architecture"]
    assert _boundary(depth=2, dtype="float32").identity != before
    boundary.model.get_layer("conv1_conv").bias.assign_add(np.ones(8, np.float32))
    assert _boundary(boundary.model, depth=2).identity["weights"] != before["weights"]


def test_augmented_patches_go_through_the_trunk_in_their_colours_and_views(tmp_path):
    """Catches colours that are lost, views that are skipped, and a trunk in training mode."""
    params = AugmentParams(stain=0.05, brightness=0.2, contrast=0.2)
    boundary = _boundary(depth=2)
    inputs = _trunk(boundary, tmp_path, depth=2).augmented(
        PATCHES, build_augmentation(params, seed=3)
    )
    same = build_augmentation(params, seed=3)  # the same random numbers
    for batch in list(ordered_batches(70, batch_size=16, view=4))[:2]:
        pixels = apply_views(PATCHES.pixels[batch.positions], batch.views)
        colours = same(pixels, training=True)
        assert not np.array_equal(colours, pixels)
        expected = boundary.model(colours, training=False).numpy()
        got = np.asarray(inputs(batch))
        # eagerly and compiled a colour may round to the next value
        np.testing.assert_allclose(got, expected, atol=0.01 * np.abs(expected).max())
    assert not list(tmp_path.glob("*/*.bin"))


@pytest.mark.parametrize(("backbone", "n_blocks"), [("resnet50", 16), ("resnet_tiny", 4)])
def test_the_deepest_boundary_is_the_smallest(backbone, n_blocks):
    """Catches a backbone for which another boundary than the deepest frozen one could pay."""
    model = _classifier(backbone=backbone, input_size=48)
    sizes = [
        int(np.prod(model.get_layer(boundary_layer(backbone=backbone, depth=d)).output.shape[1:]))
        for d in range(n_blocks)
    ]
    assert sizes == sorted(sizes)
