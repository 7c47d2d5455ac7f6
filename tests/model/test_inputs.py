"""What enters the tail is the same, bit by bit, wherever it comes from."""

import numpy as np
import pytest

from src.data.batches import apply_views, epoch_views, ordered_batches, training_batches
from src.model.activations import ActivationsOverflow
from src.model.cache import ActivationCache
from src.model.cache_plan import CachePlan
from src.model.inputs import CachedInputs, PixelInputs, trunk_forward
from src.system.log import get_logger
from tests.model.support import SMALL, labelled, random_patches

pytestmark = pytest.mark.tensorflow
LOG = get_logger("test")
N, N_VIEWS = 150, 3
PATCHES = labelled(random_patches(N), [i % 2 for i in range(N)])


@pytest.fixture(scope="module")
def trunk():
    from src.model.classifier import build_classifier
    from src.model.freezing import cut

    model = build_classifier(SMALL.model_copy(update={"backbone": "resnet_tiny"}))
    return cut(model, backbone="resnet_tiny", depth=2)[0]


def _cached(trunk, folder, *, n_kept, forward=None) -> CachedInputs:
    shape = trunk.output_shape[1:]
    cache = ActivationCache(folder, max_bytes=10**8, log=LOG)
    return CachedInputs(
        PATCHES,
        forward or trunk_forward(trunk),
        entry=cache.entry({}, 10**7 * n_kept, n=N, shape=shape, dtype="float16"),
        plan=CachePlan(n_blocks=3, n_kept=n_kept, n_bytes=0, saving=0.0, reason=None),
        shape=shape,
        dtype="float16",
        log=LOG,
    )


def _epochs(inputs) -> list[np.ndarray]:
    """All batches of two epochs."""
    met = []
    for epoch in (1, 2):
        order = {"n_views": N_VIEWS, "seed": 1, "epoch": epoch}
        inputs.prepare(epoch_views(N, **order))
        met += [np.asarray(inputs(batch)) for batch in training_batches(N, batch_size=64, **order)]
    return met


@pytest.mark.parametrize("n_kept", [0, 1, 2])
def test_what_is_not_kept_is_computed_to_the_same_bits(trunk, tmp_path, n_kept):
    """Catches a result that depends on the disk: rounding, views or padding gone astray."""
    whole = _epochs(_cached(trunk, tmp_path / "whole", n_kept=3))
    part = _epochs(_cached(trunk, tmp_path / "part", n_kept=n_kept))
    for expected, got in zip(whole, part, strict=True):
        assert got.dtype == np.float32
        np.testing.assert_array_equal(got, expected)


def test_kept_activations_are_those_of_the_patch_in_its_view(trunk, tmp_path):
    """Catches rows that went to other patches, and a view that is applied twice or not at all."""
    inputs = _cached(trunk, tmp_path / "kept", n_kept=3)
    order = {"n_views": N_VIEWS, "seed": 1, "epoch": 1}
    inputs.prepare(epoch_views(N, **order))
    batch = next(training_batches(N, batch_size=32, **order))
    pixels = apply_views(PATCHES.pixels[batch.positions], batch.views)
    expected = trunk(pixels, training=False).numpy()
    np.testing.assert_allclose(np.asarray(inputs(batch)), expected, rtol=1e-3, atol=1e-3)


def test_a_second_run_computes_nothing(trunk, tmp_path):
    """Catches a cache that is filled and not read."""
    expected = _epochs(_cached(trunk, tmp_path, n_kept=3))

    def refuse(_):
        raise AssertionError("computed again")

    again = _cached(trunk, tmp_path, n_kept=3, forward=refuse)
    for wanted, got in zip(expected, _epochs(again), strict=True):
        np.testing.assert_array_equal(wanted, got)


def test_a_full_disk_costs_time_and_nothing_else(trunk, tmp_path, monkeypatch, caplog):
    """Catches a training lost because activations could not be kept."""
    from src.model import activations

    def full(*_):
        raise OSError(28, "No space left on device")

    expected = _epochs(_cached(trunk, tmp_path / "a", n_kept=3))
    monkeypatch.setattr(activations, "_write_at", full)
    got = _epochs(_cached(trunk, tmp_path / "b", n_kept=3))
    for wanted, values in zip(expected, got, strict=True):
        np.testing.assert_array_equal(wanted, values)
    assert "activations can't be kept ([Errno 28]" in caplog.text


@pytest.mark.parametrize("n_kept", [0, 3])
def test_what_does_not_fit_is_refused_kept_or_not(trunk, tmp_path, n_kept):
    """Catches infinities that end as "lower the learning rate", which doesn't help."""

    def too_large(pixels):
        return np.full((len(pixels), *trunk.output_shape[1:]), 7e4, np.float32)

    inputs = _cached(trunk, tmp_path, n_kept=n_kept, forward=too_large)
    with pytest.raises(ActivationsOverflow, match=r"set cache\.dtype: float32"):
        _epochs(inputs)


def test_pixels_come_in_their_views_and_transformed():
    """Catches a transform that is skipped."""
    batch = next(ordered_batches(N, batch_size=16, view=2))
    plain = np.asarray(PixelInputs(PATCHES)(batch))
    np.testing.assert_array_equal(plain, apply_views(PATCHES.pixels[:16], batch.views))
    inverted = np.asarray(PixelInputs(PATCHES, lambda pixels: 255 - pixels)(batch))
    np.testing.assert_array_equal(inverted, 255 - plain)
