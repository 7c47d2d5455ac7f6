"""One pass fills several boundaries: with the bits of a pass for each, and at nobody's cost."""

from typing import Any

import numpy as np
import pytest
from filelock import FileLock

from src.model.activations import ActivationsOverflow
from src.model.boundary import Boundary
from src.model.cache import ActivationCache
from src.model.freezing import cut
from src.model.frozen import FrozenBackbone
from src.model.trunk import Trunk
from src.params import CacheParams
from src.system.log import get_logger
from tests.model.support import SMALL, labelled, random_patches

pytestmark = pytest.mark.tensorflow
LOG = get_logger("test")
N, N_VIEWS = 70, 2  # a whole block of 64, and one of 6
PATCHES = labelled(random_patches(N), [i % 2 for i in range(N)])


ABOUT: dict[str, Any] = {
    "cache_params": CacheParams(max_gb=1, dtype="float16"),
    "environment": {"tensorflow": "2"},
}


class Cuts:
    """A classifier, cut where a test wants it."""

    def __init__(self, backbone: str = "resnet_tiny") -> None:
        import keras

        from src.model.classifier import build_classifier

        keras.utils.set_random_seed(1)
        self.backbone = backbone
        self.model = build_classifier(SMALL.model_copy(update={"backbone": backbone}))

    def at(self, depth: int) -> Boundary:
        trunk, _ = cut(self.model, backbone=self.backbone, depth=depth)
        return Boundary(trunk, depth=depth, **ABOUT)

    def frozen(self, *depths: int) -> FrozenBackbone:
        return FrozenBackbone(self.model, backbone=self.backbone, depths=depths, **ABOUT)

    def fill(
        self, cache: ActivationCache, depth: int, frozen: FrozenBackbone | None = None
    ) -> None:
        """A pass in each of two views, as training prepares them."""
        trunk = Trunk(self.at(depth), depth=depth, cache=cache, log=LOG, frozen=frozen)
        inputs = trunk.inputs(PATCHES, views=N_VIEWS, passes=N_VIEWS)
        for view in range(N_VIEWS):
            inputs.prepare(np.full(N, view))


def _cache(folder, *, max_bytes: int = 10**9) -> ActivationCache:
    return ActivationCache(folder, max_bytes=max_bytes, log=LOG)


def _kept(folder) -> dict[str, bytes]:
    """Every file of activations, with its ledger."""
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.glob("*/view-*")}


@pytest.mark.parametrize("backbone", ["resnet_tiny", "resnet50"])
@pytest.mark.parametrize("own", [0, 2])
def test_the_bits_are_those_of_a_pass_for_each(tmp_path, backbone, own):
    """Catches a result that depends on which depths were tried before."""
    depths = (0, 1, 2, 3)
    cuts = Cuts(backbone)
    with _cache(tmp_path / "shared") as cache:
        cuts.fill(cache, own, cuts.frozen(*depths))
    for depth in depths:
        with _cache(tmp_path / "alone") as cache:
            Cuts(backbone).fill(cache, depth)  # of a classifier that nothing else has cut
    shared = _kept(tmp_path / "shared")
    assert len(shared) == 2 * N_VIEWS * len(depths)
    assert shared == _kept(tmp_path / "alone")


def test_what_is_trained_later_does_not_reach_it(tmp_path):
    """Catches activations of trained weights kept under the name of the initial ones."""
    cuts = Cuts()
    frozen = cuts.frozen(0, 2)
    kernel = cuts.model.get_layer("conv5_block1_1_conv").kernel
    kernel.assign_add(np.ones(kernel.shape, np.float32))  # trained at depth 2
    with _cache(tmp_path / "shared") as cache:
        cuts.fill(cache, 2, frozen)
    with _cache(tmp_path / "alone") as cache:
        Cuts().fill(cache, 0)
    assert _kept(tmp_path / "alone").items() <= _kept(tmp_path / "shared").items()


def test_depths_that_leave_nothing_frozen_have_no_boundary():
    """Catches a search over backbones that ends because one of them has fewer blocks."""
    assert list(Cuts().frozen(3, 4, 16, 0).boundaries) == [0, 3]


def test_another_backbone_is_not_used(tmp_path):
    """Catches activations of other weights taken for a trunk's own."""
    cuts = Cuts()
    frozen = cuts.frozen(0, 2)
    cuts.model.get_layer("conv1_conv").bias.assign_add(np.ones(8, np.float32))
    for folder, given in (("given", frozen), ("alone", None)):
        with _cache(tmp_path / folder) as cache:
            cuts.fill(cache, 0, given)
    assert _kept(tmp_path / "given") == _kept(tmp_path / "alone")


def test_what_was_kept_on_the_way_is_not_computed_again(tmp_path, monkeypatch):
    """Catches entries that are filled and not found: other names, other grants."""
    cuts = Cuts()
    with _cache(tmp_path) as cache:
        cuts.fill(cache, 0, cuts.frozen(0, 1, 2))
    monkeypatch.setattr(FrozenBackbone, "forward", lambda *_: pytest.fail("computed again"))
    with _cache(tmp_path) as cache:
        cuts.fill(cache, 1, cuts.frozen(0, 1, 2))


@pytest.mark.parametrize("lacking", [0, 1])
def test_others_take_no_room_but_what_is_to_spare(tmp_path, lacking):
    """Catches others that remove what is there (both sides of the limit)."""
    cuts = Cuts()
    with _cache(tmp_path) as cache:
        cuts.fill(cache, 2)
    before = _kept(tmp_path)
    met = {"views": N_VIEWS, "passes": N_VIEWS, "max_bytes": 10**9}
    wanted = sum(cuts.at(depth).plan(PATCHES, **met).n_bytes for depth in (0, 3))
    taken = sum(f.stat().st_blocks * 512 for f in tmp_path.glob("*/view-*.bin"))
    with _cache(tmp_path, max_bytes=taken + wanted - lacking) as cache:
        cuts.fill(cache, 0, cuts.frozen(0, 3))
    assert before.items() <= _kept(tmp_path).items()
    assert len(list(tmp_path.glob("*/entry.json"))) == 3 - lacking


def test_large_boundaries_are_not_worth_a_present(tmp_path, monkeypatch):
    """Catches a pass that takes longer to write than to compute (both sides of the limit)."""
    cuts = Cuts()
    at_least = cuts.at(1).patch_bytes + cuts.at(3).patch_bytes
    for limit, n_entries in ((at_least - 1, 2), (at_least, 3)):
        monkeypatch.setattr("src.model.shared_pass.MOST_BESIDE_BYTES", limit)
        folder = tmp_path / str(limit)
        with _cache(folder) as cache:
            cuts.fill(cache, 0, cuts.frozen(0, 1, 3))
        assert len(list(folder.glob("*/entry.json"))) == n_entries


def test_an_entry_that_another_process_fills_is_left_to_it(tmp_path):
    """Catches two workers that wait for each other, and two that write one ledger."""
    cuts = Cuts()
    with _cache(tmp_path) as cache:
        cuts.fill(cache, 2)
    (elsewhere,) = tmp_path.glob("*/fill.lock")
    before = _kept(tmp_path)
    for file in elsewhere.parent.glob("view-*.json"):
        file.unlink()
    with FileLock(elsewhere), _cache(tmp_path) as cache:
        cuts.fill(cache, 0, cuts.frozen(0, 2))
    now = _kept(tmp_path)
    assert not list(elsewhere.parent.glob("view-*.json"))
    assert len(now) == len(before) + N_VIEWS  # no ledger there, data and ledger of the own


@pytest.mark.parametrize("error", ["value", "disk"])
def test_what_fails_beside_costs_the_pass_nothing(tmp_path, monkeypatch, error):
    """Catches a training lost to another trial's activations."""
    from src.model import activations

    cuts = Cuts()
    row_bytes = 64 * cuts.at(2).patch_bytes
    if error == "value":
        stored = activations.as_stored

        def too_large(values, dtype):
            if dtype == np.float16:
                raise ActivationsOverflow("too large")
            return stored(values, dtype)

        monkeypatch.setattr(activations, "as_stored", too_large)
    else:
        write = activations._write_at

        def full(descriptor, data, offset):
            if len(data) == row_bytes:
                raise OSError(28, "No space left on device")
            write(descriptor, data, offset)

        monkeypatch.setattr(activations, "_write_at", full)
    with _cache(tmp_path) as cache:
        cuts.fill(cache, 0, cuts.frozen(0, 2))
    ledgers = list(tmp_path.glob("*/view-*.json"))
    assert len(ledgers) == N_VIEWS
    assert len({ledger.parent for ledger in ledgers}) == 1
