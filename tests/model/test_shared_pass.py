"""One pass fills several boundaries: with the bits of a pass for each, and at nobody's cost."""

import numpy as np
import pytest
from filelock import FileLock

from src.model.boundary import Boundary
from src.model.cache import ActivationCache
from src.model.freezing import cut
from src.model.trunk import Trunk
from src.params import CacheParams
from src.system.log import get_logger
from tests.model.support import SMALL, labelled, random_patches

pytestmark = pytest.mark.tensorflow
LOG = get_logger("test")
N, N_VIEWS = 70, 2  # a whole block of 64, and one of 6
PATCHES = labelled(random_patches(N), [i % 2 for i in range(N)])


class Boundaries:
    """Those of one classifier, by depth."""

    def __init__(self, backbone: str = "resnet_tiny") -> None:
        import keras

        from src.model.classifier import build_classifier

        keras.utils.set_random_seed(1)
        self._backbone = backbone
        self._model = build_classifier(SMALL.model_copy(update={"backbone": backbone}))

    def __call__(self, *depths: int) -> list[Boundary]:
        return [
            Boundary(
                cut(self._model, backbone=self._backbone, depth=depth)[0],
                depth=depth,
                cache_params=CacheParams(max_gb=1, dtype="float16"),
                environment={"tensorflow": "2"},
            )
            for depth in depths
        ]


def _fill(cache: ActivationCache, own: Boundary, beside: list[Boundary]) -> None:
    """A pass in each of two views, as training prepares them."""
    trunk = Trunk(own, beside=beside, cache=cache, log=LOG)
    inputs = trunk.inputs(PATCHES, views=N_VIEWS, passes=N_VIEWS)
    for view in range(N_VIEWS):
        inputs.prepare(np.full(N, view))


def _cache(folder, *, max_bytes: int = 10**9) -> ActivationCache:
    return ActivationCache(folder, max_bytes=max_bytes, log=LOG)


def _kept(folder) -> dict[str, bytes]:
    """Every file of activations, with its ledger."""
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.glob("*/view-*")}


@pytest.mark.parametrize("backbone", ["resnet_tiny", "resnet50"])
@pytest.mark.parametrize("order", [(0, 1, 2, 3), (2, 0, 3)])
def test_the_bits_are_those_of_a_pass_for_each(tmp_path, backbone, order):
    """Catches a result that depends on which depths were tried before."""
    own, *beside = Boundaries(backbone)(*order)
    with _cache(tmp_path / "shared") as cache:
        _fill(cache, own, beside)
    for depth in order:
        (alone,) = Boundaries(backbone)(depth)  # of a classifier that nothing else has cut
        with _cache(tmp_path / "alone") as cache:
            _fill(cache, alone, [])
    shared = _kept(tmp_path / "shared")
    assert len(shared) == 2 * N_VIEWS * len(order)
    assert shared == _kept(tmp_path / "alone")


def test_what_was_kept_on_the_way_is_not_computed_again(tmp_path, monkeypatch):
    """Catches entries that are filled and not found: other names, other grants."""
    own, *beside = Boundaries()(0, 1, 2)
    with _cache(tmp_path) as cache:
        _fill(cache, own, beside)
    monkeypatch.setattr(Trunk, "_forward", lambda _: pytest.fail("computed again"))
    with _cache(tmp_path) as cache:
        _fill(cache, beside[0], [own, beside[1]])


@pytest.mark.parametrize("lacking", [0, 1])
def test_others_take_no_room_but_what_is_to_spare(tmp_path, lacking):
    """Catches others that remove what is there (both sides of the limit)."""
    own, other, old = Boundaries()(0, 3, 2)
    with _cache(tmp_path) as cache:
        _fill(cache, old, [])
    before = _kept(tmp_path)
    met = {"views": N_VIEWS, "passes": N_VIEWS, "max_bytes": 10**9}
    wanted = sum(boundary.plan(PATCHES, **met).n_bytes for boundary in (own, other))
    taken = sum(f.stat().st_blocks * 512 for f in tmp_path.glob("*/view-*.bin"))
    with _cache(tmp_path, max_bytes=taken + wanted - lacking) as cache:
        _fill(cache, own, [other])
    assert before.items() <= _kept(tmp_path).items()
    assert len(list(tmp_path.glob("*/entry.json"))) == 3 - lacking


def test_large_boundaries_are_not_worth_a_present(tmp_path, monkeypatch):
    """Catches a pass that takes longer to write than to compute (both sides of the limit)."""
    own, small, large = Boundaries()(0, 1, 3)
    at_least = small.patch_bytes + large.patch_bytes
    for limit, n_entries in ((at_least - 1, 2), (at_least, 3)):
        monkeypatch.setattr("src.model.shared_pass.MOST_BESIDE_BYTES", limit)
        folder = tmp_path / str(limit)
        with _cache(folder) as cache:
            _fill(cache, own, [small, large])
        assert len(list(folder.glob("*/entry.json"))) == n_entries


def test_an_entry_that_another_process_fills_is_left_to_it(tmp_path):
    """Catches two workers that wait for each other, and two that write one ledger."""
    own, other = Boundaries()(0, 2)
    with _cache(tmp_path) as cache:
        _fill(cache, other, [])
    (elsewhere,) = tmp_path.glob("*/fill.lock")
    before = _kept(tmp_path)
    for file in elsewhere.parent.glob("view-*.json"):
        file.unlink()
    with FileLock(elsewhere), _cache(tmp_path) as cache:
        _fill(cache, own, [other])
    now = _kept(tmp_path)
    assert not list(elsewhere.parent.glob("view-*.json"))
    assert len(now) == len(before) + N_VIEWS  # no ledger there, data and ledger of the own


@pytest.mark.parametrize("error", ["value", "disk"])
def test_what_fails_beside_costs_the_pass_nothing(tmp_path, monkeypatch, error):
    """Catches a training lost to another trial's activations."""
    from src.model import activations

    own, other = Boundaries()(0, 2)
    if error == "value":
        other.model.get_layer("conv1_conv").bias.assign_add(np.full(8, 1e9, np.float32))
    else:
        write = activations._write_at
        row_bytes = 64 * other.patch_bytes

        def full(descriptor, data, offset):
            if len(data) == row_bytes:
                raise OSError(28, "No space left on device")
            write(descriptor, data, offset)

        monkeypatch.setattr(activations, "_write_at", full)
    with _cache(tmp_path) as cache:
        _fill(cache, own, [other])
    ledgers = list(tmp_path.glob("*/view-*.json"))
    assert len(ledgers) == N_VIEWS
    assert len({ledger.parent for ledger in ledgers}) == 1
