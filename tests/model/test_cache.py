"""The folder of activations: what is kept, what goes, and what a change of identity means."""

import os

import pytest

from src.model.cache import ActivationCache, mark_used
from src.model.cache_plan import plan_cache
from src.system.log import get_logger

LOG = get_logger("test")
BLOCK = 64 * 10  # bytes of a block of patches of 10 bytes


def _plan(*, views=2, epochs=4, max_blocks=100, n_patches=640):
    return plan_cache(
        n_patches=n_patches,
        patch_bytes=10,
        views=views,
        epochs=epochs,
        max_bytes=int(max_blocks * BLOCK),
    )


@pytest.mark.parametrize(
    ("given", "n_kept"),
    [
        ({}, 10),  # 10 blocks in 2 views: 20 fit
        ({"epochs": 1}, 10),  # met once, but it fits, and another run may want it
        ({"max_blocks": 8}, 4),  # of 10 blocks, 4 in both views
        ({"max_blocks": 8, "epochs": 2}, 0),  # each view met once: nothing kept is read again
        ({"max_blocks": 10, "views": 8, "epochs": 2}, 0),
        ({"max_blocks": 80, "views": 8, "epochs": 9}, 10),
        ({"max_blocks": 20, "views": 8, "epochs": 2}, 10),  # only two views are ever met
        ({"max_blocks": 0}, 0),
        ({"n_patches": 65, "max_blocks": 4}, 2),  # a short last block counts as one
    ],
)
def test_what_is_kept(given, n_kept):
    """Catches a rule that fills the disk with what is never read again."""
    plan = _plan(**given)
    assert plan.n_kept == n_kept
    assert plan.n_bytes <= given.get("max_blocks", 100) * BLOCK
    assert (plan.reason is None) == (plan.n_kept == plan.n_blocks)


def test_boundaries_get_smaller_towards_the_top():
    """Catches a backbone for which the deepest frozen boundary isn't the cheapest to keep."""
    shapes = [(24, 256), (12, 512), (6, 1024), (3, 2048)]  # ResNet50 at 96 px
    sizes = [side * side * channels for side, channels in shapes]
    assert sizes == sorted(sizes, reverse=True)


def _cache(folder, max_bytes=100) -> ActivationCache:
    return ActivationCache(folder, max_bytes=max_bytes, log=LOG)


def test_same_identity_same_folder_other_identity_other_folder(tmp_path):
    """Catches stale activations: of other weights, data, boundary or software."""
    identity = {"weights": "a", "patches": "b"}
    first = _cache(tmp_path).entry(identity, 10)
    assert _cache(tmp_path).entry(dict(reversed(identity.items())), 10) == first
    assert _cache(tmp_path).entry({**identity, "weights": "c"}, 10) != first


def test_used_longest_ago_goes_first(tmp_path):
    """Catches a bound that isn't kept, and one that removes what is in use."""
    cache = _cache(tmp_path)
    folders = [cache.entry({"n": n}, 40) for n in range(2)]
    for age, folder in enumerate(folders):
        os.utime(folder / "entry.json", (age, age))
    mark_used(folders[0])
    later = _cache(tmp_path)
    new = later.entry({"n": 2}, 40)
    assert [folder.exists() for folder in (*folders, new)] == [True, False, True]
    newest = later.entry({"n": 3}, 60)
    assert [folder.exists() for folder in (folders[0], new, newest)] == [False, True, True]


def test_what_may_still_be_asked_for(tmp_path):
    """Catches two splits that each plan with the whole bound."""
    cache = _cache(tmp_path)
    cache.entry({"n": 1}, 30)
    assert cache.free_bytes == 70
    cache.entry({"n": 1}, 30)
    assert cache.free_bytes == 70
