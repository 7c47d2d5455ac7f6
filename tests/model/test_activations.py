"""What enters the tail has the same bits wherever it comes from; files are whole or not there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import keras
import numpy as np
import pytest

from src import paths
from src.data.augmentation import build_augmentation
from src.data.batches import apply_views, epoch_views, ordered_batches, training_batches
from src.model import activations
from src.model.activations import (
    ActivationsOverflow,
    Blocks,
    Boundary,
    FrozenLayers,
    PixelInputs,
    folded,
)
from src.model.classifier import boundary_layer, build_classifier, cut
from src.params import AugmentParams, CacheParams
from src.system.log import get_logger
from tests.model.support import SMALL, labelled, random_patches

pytestmark = pytest.mark.tensorflow
LOG = get_logger("test")
N, N_VIEWS = 150, 3  # two whole blocks of 64 and one of 22
PATCHES = labelled(random_patches(N), [i % 2 for i in range(N)])
OTHERS = labelled(random_patches(70, seed=1), [i % 2 for i in range(70)], split="val")
ENVIRONMENT = {"tensorflow": "2", "threads": 2, "processor": "a", "gpus": 0}
N_FILES = 3 * N_VIEWS
TINY = SMALL.model_copy(update={"backbone": "resnet_tiny"})


@pytest.fixture(autouse=True)
def _activations_apart(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "ACTIVATIONS", tmp_path / "activations")


def _classifier(backbone="resnet_tiny", **changes) -> keras.Model:
    """The same weights at every call."""
    keras.utils.set_random_seed(1)
    return build_classifier(SMALL.model_copy(update={"backbone": backbone, **changes}))


def _frozen(
    depth=2, *, classifier=None, backbone="resnet_tiny", max_gb=1.0, dtype="float16", depths=()
) -> FrozenLayers:
    return FrozenLayers(
        classifier or _classifier(backbone),
        model=SMALL.model_copy(update={"backbone": backbone}),
        depth=depth,
        cache=CacheParams(max_gb=max_gb, dtype=dtype),
        environment=ENVIRONMENT,
        depths=depths,
        log=LOG,
    )


def _epochs(inputs) -> list[np.ndarray]:
    """All batches of three epochs, in which every block is met in every view."""
    met = []
    for epoch in range(1, N_VIEWS + 1):
        order = {"n_views": N_VIEWS, "seed": 1, "epoch": epoch}
        inputs.prepare(epoch_views(N, **order))
        met += [np.asarray(inputs(batch)) for batch in training_batches(N, batch_size=64, **order)]
    return met


def _assert_equal(got: list[np.ndarray], wanted: list[np.ndarray]) -> None:
    for one, other in zip(got, wanted, strict=True):
        np.testing.assert_array_equal(one, other)


def _files() -> dict[str, bytes]:
    return {
        str(f.relative_to(paths.ACTIVATIONS)): f.read_bytes()
        for f in sorted(paths.ACTIVATIONS.glob("*/*/*.bin"))
    }


def _view_gb(depth=2, patches=PATCHES) -> float:
    """What one view of the patches takes."""
    trunk, _ = cut(_classifier(), backbone="resnet_tiny", depth=depth)
    boundary = Boundary(trunk, depth, TINY, "float16", ENVIRONMENT)
    return Blocks(boundary, patches, views=1).view_bytes / 1e9


def test_kept_activations_are_those_of_the_patch_in_its_view():
    """Catches rows that went to other patches, and a view that is applied twice or not at all."""
    inputs = _frozen().inputs(PATCHES, views=N_VIEWS)
    order = {"n_views": N_VIEWS, "seed": 1, "epoch": 1}
    inputs.prepare(epoch_views(N, **order))
    batch = next(training_batches(N, batch_size=32, **order))
    pixels = apply_views(PATCHES.pixels[batch.positions], batch.views)
    trunk, _ = cut(_classifier(), backbone="resnet_tiny", depth=2)
    expected = trunk(pixels, training=False).numpy()
    np.testing.assert_allclose(np.asarray(inputs(batch)), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("n_kept", [0, 1, 2])
def test_what_is_not_kept_is_computed_to_the_same_bits(n_kept):
    """Catches a result that depends on the disk (both sides of the limit), and a disk that takes
    more than it may: whole views are kept, as many as fit."""
    expected = _epochs(_frozen().inputs(PATCHES, views=N_VIEWS))
    frozen = _frozen(max_gb=(n_kept + 1) * _view_gb() - 1e-9)
    _assert_equal(_epochs(frozen.inputs(PATCHES, views=N_VIEWS)), expected)
    taken = sum(len(data) for data in _files().values())
    assert taken == pytest.approx(n_kept * _view_gb() * 1e9)


def test_a_second_run_computes_nothing(monkeypatch):
    """Catches activations that are kept and not found, by a classifier built a second time."""
    expected = _epochs(_frozen().inputs(PATCHES, views=N_VIEWS))
    assert len(_files()) == N_FILES
    monkeypatch.setattr(activations, "_compiled", lambda _: pytest.fail("computed again"))
    _assert_equal(_epochs(_frozen().inputs(PATCHES, views=N_VIEWS)), expected)


@pytest.mark.parametrize("damage", ["flipped bit", "cut short", "lost", "empty"])
def test_a_damaged_block_is_computed_again(damage):
    """Catches training on damaged activations: nothing else would ever notice."""
    expected = _epochs(_frozen().inputs(PATCHES, views=N_VIEWS))
    whole = _files()
    name = next(iter(whole))
    data = bytearray(whole[name])
    data[65] ^= 1
    damaged = {"flipped bit": bytes(data), "cut short": whole[name][:-1], "empty": b""}
    (paths.ACTIVATIONS / name).unlink()
    if damage in damaged:
        (paths.ACTIVATIONS / name).write_bytes(damaged[damage])
    _assert_equal(_epochs(_frozen().inputs(PATCHES, views=N_VIEWS)), expected)
    assert _files() == whole


@pytest.mark.parametrize("loss", ["files", "ends of files"])
def test_what_another_process_removes_is_computed(loss):
    """Catches a training lost, or rows of whatever was in memory, when others need the room."""
    expected = _epochs(_frozen().inputs(PATCHES, views=N_VIEWS))
    inputs = _frozen().inputs(PATCHES, views=N_VIEWS)
    order = {"n_views": N_VIEWS, "seed": 1, "epoch": 1}
    inputs.prepare(epoch_views(N, **order))
    for file in paths.ACTIVATIONS.glob("*/*/*.bin"):
        file.unlink() if loss == "files" else os.truncate(file, 5)
    got = [np.asarray(inputs(batch)) for batch in training_batches(N, batch_size=64, **order)]
    _assert_equal(got, expected[: len(got)])
    _epochs(inputs)
    assert len(_files()) == N_FILES  # kept again


def test_a_kill_leaves_whole_files_or_none():
    """Catches a block that counts as kept before all of it is on disk."""
    code = """
import os, signal, sys
from pathlib import Path
from src import paths
from src.system import durable
from tests.model.test_activations import N_VIEWS, PATCHES, _epochs, _frozen

paths.ACTIVATIONS = Path(sys.argv[1])
calls, sync = [], os.fsync
def dies(descriptor):
    calls.append(1)
    if len(calls) == 6:
        os.kill(os.getpid(), signal.SIGKILL)
    sync(descriptor)
os.fsync = dies
_epochs(_frozen().inputs(PATCHES, views=N_VIEWS))
"""
    command = [sys.executable, "-c", code, str(paths.ACTIVATIONS)]
    died = subprocess.run(command, cwd=paths.ROOT, capture_output=True)
    assert died.returncode == -signal.SIGKILL, died.stderr[-2000:]
    left = _files()
    assert 0 < len(left) < N_FILES
    _epochs(_frozen().inputs(PATCHES, views=N_VIEWS))
    assert left.items() <= _files().items()


def test_a_full_disk_costs_time_and_nothing_else(monkeypatch, caplog):
    """Catches a training lost because activations could not be kept."""
    expected = _epochs(_frozen().inputs(PATCHES, views=N_VIEWS))

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(activations, "replacing", full)
    monkeypatch.setattr(paths, "ACTIVATIONS", paths.ACTIVATIONS / "full")
    _assert_equal(_epochs(_frozen().inputs(PATCHES, views=N_VIEWS)), expected)
    assert "activations can't be kept ([Errno 28]" in caplog.text


@pytest.mark.parametrize("max_gb", [0.0, 1.0])
def test_what_does_not_fit_is_refused_kept_or_not(monkeypatch, max_gb):
    """Catches infinities that end as "lower the learning rate", which doesn't help."""
    inputs = _frozen(max_gb=max_gb).inputs(PATCHES, views=N_VIEWS)
    compiled = activations._compiled
    monkeypatch.setattr(
        activations,
        "_compiled",
        lambda layers: lambda pixels: [np.full_like(x, 7e4) for x in compiled(layers)(pixels)],
    )
    with pytest.raises(ActivationsOverflow, match=r"up to 7e\+04 don't fit float16; set cache"):
        _epochs(inputs)


@pytest.mark.parametrize(("spare", "n_left"), [(-1e-9, 1), (1e-9, 2)])
def test_others_give_way_oldest_first_when_room_is_needed(spare, n_left):
    """Catches a bound that isn't kept, and activations removed for nothing (both sides)."""
    for age, depth in ((200, 1), (100, 3)):
        inputs = _frozen(depth).inputs(PATCHES, views=1)
        inputs.prepare(np.zeros(N, np.int64))
        for folder in paths.ACTIVATIONS.iterdir():
            seconds = folder.stat().st_mtime - age
            os.utime(folder, (seconds, seconds))
    frozen = _frozen(2, max_gb=_view_gb(1) + _view_gb(2) + _view_gb(3) + spare)
    frozen.inputs(PATCHES, views=1).prepare(np.zeros(N, np.int64))
    kept = {len(data) for data in _files().values()}
    assert len(list(paths.ACTIVATIONS.iterdir())) == n_left + 1
    rows = 64 * int(
        np.prod(cut(_classifier(), backbone="resnet_tiny", depth=3)[0].output_shape[1:])
    )
    assert 2 * rows + 4 in kept  # of depth 3, used last


def test_two_splits_share_the_bound():
    """Catches train that removes val, which the same run reads in every epoch."""
    frozen = _frozen(max_gb=_view_gb(patches=OTHERS) + _view_gb() + 1e-9)
    frozen.inputs(OTHERS, views=1).prepare(np.zeros(len(OTHERS), np.int64))
    frozen.inputs(PATCHES, views=2).prepare(np.zeros(N, np.int64))
    assert len(_files()) == 2 + 3  # one view of each


@pytest.mark.parametrize("backbone", ["resnet_tiny", "resnet50"])
@pytest.mark.parametrize("own", [0, 2])
def test_a_pass_for_several_depths_has_the_bits_of_one_for_each(backbone, own, monkeypatch):
    """Catches a result that depends on which depths were tried before."""
    views = np.zeros(len(OTHERS), np.int64)
    classifier = _classifier(backbone)
    frozen = _frozen(own, classifier=classifier, backbone=backbone, depths=(0, 1, 2, 3, 16))
    inputs = frozen.inputs(OTHERS, views=1)
    for variable in classifier.trainable_variables:  # trained at depth 3: must not matter
        if "conv5" in variable.path and own:
            variable.assign_add(np.ones(variable.shape, np.float32))
    inputs.prepare(views)
    shared = _files()
    monkeypatch.setattr(paths, "ACTIVATIONS", paths.ACTIVATIONS / "alone")
    for depth in (0, 1, 2, 3):
        _frozen(depth, backbone=backbone).inputs(OTHERS, views=1).prepare(views)
    assert len(shared) == 2 * 4
    assert shared == _files()


def test_what_was_kept_on_the_way_is_not_computed_again(monkeypatch):
    """Catches depths that are kept and not found."""
    _epochs(_frozen(0, depths=(0, 1, 2)).inputs(PATCHES, views=N_VIEWS))
    monkeypatch.setattr(activations, "_compiled", lambda _: pytest.fail("computed again"))
    _epochs(_frozen(1, depths=(0, 1, 2)).inputs(PATCHES, views=N_VIEWS))


@pytest.mark.parametrize(("spare", "n_kept"), [(-1e-9, 1), (1e-9, 2)])
def test_other_depths_take_no_room_but_what_is_to_spare(spare, n_kept):
    """Catches a present for later trials that removes what is there (both sides of the limit)."""
    frozen = _frozen(2, depths=(3,), max_gb=_view_gb(2) + _view_gb(3) + spare)
    frozen.inputs(PATCHES, views=1).prepare(np.zeros(N, np.int64))
    assert len(_files()) == 3 * n_kept


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
        ({"dtype": "float32"}, True),  # at depth 0 it is always that
        ({"depth": 1}, False),
        ({"weights": "imagenet"}, True),  # their digest counts, not where they are from
    ],
    ids=str,
)
def test_what_the_identity_depends_on(change, is_same):
    """Catches stale activations, and activations computed anew for nothing."""

    def identity(*, environment=None, depth=0, dtype="float16", **changes):
        trunk, _ = cut(_classifier(**changes), backbone="resnet_tiny", depth=depth)
        about = {**ENVIRONMENT, **(environment or {})}
        return Boundary(trunk, depth, TINY.model_copy(update=changes), dtype, about).identity

    assert (identity(**change) == identity()) == is_same


def test_weights_are_in_the_identity():
    """Catches activations of other weights."""
    trunk, _ = cut(_classifier(), backbone="resnet_tiny", depth=2)
    before, after = (Boundary(trunk, 2, TINY, "float16", ENVIRONMENT) for _ in range(2))
    assert before.identity
    trunk.get_layer("conv1_conv").bias.assign_add(np.ones(8, np.float32))
    assert after.identity["weights"] != before.identity["weights"]


def test_augmented_patches_go_through_the_trunk_in_their_colours_and_views():
    """Catches colours that are lost, views that are skipped, and a trunk in training mode."""
    params = AugmentParams(stain=0.05, brightness=0.2, contrast=0.2)
    inputs = _frozen().augmented(PATCHES, build_augmentation(params, seed=3))
    same = build_augmentation(params, seed=3)  # the same random numbers
    trunk, _ = cut(_classifier(), backbone="resnet_tiny", depth=2)
    for batch in list(ordered_batches(70, batch_size=16, view=4))[:2]:
        pixels = apply_views(PATCHES.pixels[batch.positions], batch.views)
        colours = same(pixels, training=True)
        assert not np.array_equal(colours, pixels)
        expected = trunk(colours, training=False).numpy()
        # eagerly and compiled a colour may round to the next value
        atol = 0.01 * np.abs(expected).max()
        np.testing.assert_allclose(np.asarray(inputs(batch)), expected, atol=atol)
    assert not _files()


def test_pixels_come_in_their_views_and_transformed():
    """Catches a transform that is skipped."""
    batch = next(ordered_batches(N, batch_size=16, view=2))
    plain = np.asarray(PixelInputs(PATCHES)(batch))
    np.testing.assert_array_equal(plain, apply_views(PATCHES.pixels[:16], batch.views))
    inverted = np.asarray(PixelInputs(PATCHES, lambda pixels: 255 - pixels)(batch))
    np.testing.assert_array_equal(inverted, 255 - plain)


@pytest.mark.parametrize(("backbone", "n_blocks"), [("resnet50", 16), ("resnet_tiny", 4)])
def test_the_deepest_boundary_is_the_smallest(backbone, n_blocks):
    """Catches a backbone for which another boundary than the deepest frozen one could pay."""
    model = _classifier(backbone, input_size=48)
    sizes = [
        int(np.prod(model.get_layer(boundary_layer(backbone=backbone, depth=d)).output.shape[1:]))
        for d in range(n_blocks)
    ]
    assert sizes == sorted(sizes)


def _norms(model: keras.Model) -> list[keras.layers.Layer]:
    return [x for x in model.layers if isinstance(x, keras.layers.BatchNormalization)]


def test_folded_trunk_gives_the_outputs_of_the_trunk_and_leaves_it_alone():
    """Catches a wrong scale or offset, a layer left unfolded (other cuts of the classifier read it
    too), and a trunk changed by folding."""
    rng = np.random.default_rng(0)
    model = build_classifier(SMALL)
    trunk = [cut(model, backbone="resnet50", depth=depth)[0] for depth in (1, 9, 3)][-1]
    for layer in _norms(trunk):
        gamma, variance = rng.uniform(0.5, 1.5, (2, layer.gamma.shape[0]))
        beta, mean = rng.normal(size=(2, layer.gamma.shape[0])) / 10
        layer.set_weights([gamma, beta, mean, variance])
    patches = random_patches(4)
    expected = trunk(patches, training=False).numpy()
    copy = folded(trunk)
    assert not _norms(copy)
    value = copy(patches, training=False).numpy()
    np.testing.assert_allclose(value, expected, atol=1e-5 * np.abs(expected).max())
    np.testing.assert_array_equal(trunk(patches, training=False), expected)


def test_what_another_layer_reads_is_not_folded():
    """Catches a convolution whose own output is still needed."""
    inputs = keras.Input((4, 4, 3))
    y = keras.layers.Conv2D(2, 1)(inputs)
    model = keras.Model(inputs, keras.layers.Add()([y, keras.layers.BatchNormalization()(y)]))
    model.layers[2].set_weights(list(np.array([[2.0, 3], [1, 1], [0.5, 0.5], [4, 9]])))
    x = np.random.default_rng(0).normal(size=(2, 4, 4, 3)).astype(np.float32)
    np.testing.assert_array_equal(folded(model)(x), model(x, training=False))
