"""The folder of activations: what is kept, what goes, and what a change of identity means."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from src.model import cache as module
from src.model.cache import ActivationCache, Entry
from src.model.cache_plan import plan_cache
from src.system import durable
from src.system.log import get_logger

LOG = get_logger("test")
N, SHAPE = 640, (16,)  # ten blocks of 64 rows of 64 bytes: a page of 4,096 bytes each
VIEW = 10 * 4096  # disk that one view of all takes
PLANNED = 10 * 8192  # the same with a page a block for the file system's map


def _plan(*, views=2, passes=4, room=100, n_patches=N):
    """``room`` in blocks of one view."""
    return plan_cache(
        n_patches=n_patches, patch_bytes=64, views=views, passes=passes, max_bytes=room * 8192
    )


@pytest.mark.parametrize(
    ("given", "n_kept", "saving"),
    [
        ({}, 10, 0.5),  # 10 blocks in 2 views: 20 fit; 2 of 4 passes are computed
        ({"passes": 1}, 10, 0.0),  # met once, but it fits, and another run may want it
        ({"room": 8}, 4, 0.2),  # of 10 blocks, 4 in both views
        ({"room": 4}, 2, 0.1),  # just worth it: a fifth of the blocks, half of their passes
        ({"room": 3}, 0, 0.0),  # a tenth of the blocks would save 5 %
        ({"room": 19, "passes": 2}, 0, 0.0),  # each view met once: nothing is read again
        ({"room": 10, "views": 8, "passes": 2}, 0, 0.0),
        ({"room": 80, "views": 8, "passes": 9}, 10, 1 / 9),
        ({"room": 20, "views": 8, "passes": 2}, 10, 0.0),  # only two views are ever met
        ({"room": 0}, 0, 0.0),
        ({"room": -1}, 0, 0.0),
        ({"n_patches": 65, "room": 4}, 2, 0.5),  # a short last block counts as one
    ],
)
def test_what_is_kept(given, n_kept, saving):
    """Catches a rule that fills the disk with what is never read again, and a share below 0."""
    plan = _plan(**given)
    assert plan.n_kept == n_kept
    assert plan.saving == pytest.approx(saving)
    assert 0 <= plan.n_bytes <= max(0, given.get("room", 100)) * 8192
    assert (plan.reason is None) == (plan.n_kept == plan.n_blocks)


def test_the_log_gives_the_reason():
    """Catches a person who can't tell what more disk would bring."""
    wanted = "all would take 0.0 GB (cache.max_gb)"
    assert _plan(room=8).reason == (
        f"40 % of the activations are kept, which saves 20 % of the frozen layers' work; {wanted}"
    )
    assert _plan(room=3).reason == (
        "no activations are kept: the 10 % that fit would save 5 % of the frozen layers' work; "
        + wanted
    )


def test_a_full_fine_tuning_at_224_px_does_not_fill_200_gb():
    """Catches 200 GB written to save 6 % of the work: depth 9, 28 × 28 × 512 in float16."""
    plan = plan_cache(
        n_patches=165_000,
        patch_bytes=28 * 28 * 512 * 2,
        views=8,
        passes=12,
        max_bytes=200 * 10**9,
    )
    assert plan.n_kept == 0


def _cache(folder, max_bytes=10 * PLANNED) -> ActivationCache:
    return ActivationCache(folder, max_bytes=max_bytes, log=LOG)


def _opened(cache: ActivationCache, name: str, n_bytes: int = PLANNED) -> Entry | None:
    return cache.entry({"name": name}, n_bytes, n=N, shape=SHAPE, dtype="float32")


def _fill(entry: Entry, *views: int) -> None:
    def compute(view, block):
        return np.full((64, *SHAPE), 100 * view + block, np.float32)

    entry.fill({view: list(range(10)) for view in views}, compute, advance=lambda _: None)


def _filled(folder: Path, name: str, *views: int, max_bytes: int = 10 * PLANNED) -> Path:
    """An entry that an earlier run left."""
    with _cache(folder, max_bytes) as cache:
        entry = _opened(cache, name, len(views) * PLANNED)
        _fill(entry, *views)
        return entry.folder


def _n_whole(entry: Entry, view: int) -> int:
    return int(entry.has(view, np.arange(N)).sum()) // 64


def test_same_identity_same_folder_other_identity_other_folder(tmp_path):
    """Catches stale activations: of other weights, data, boundary or software."""
    cache = _cache(tmp_path)
    kind = {"n": N, "shape": SHAPE, "dtype": "float32"}
    folder = cache.entry({"weights": "a", "patches": "b"}, PLANNED, **kind).folder
    assert cache.entry({"patches": "b", "weights": "a"}, PLANNED, **kind).folder == folder
    assert cache.entry({"weights": "c", "patches": "b"}, PLANNED, **kind).folder != folder


def test_used_longest_ago_goes_first(tmp_path):
    """Catches a bound that isn't kept, and one that removes what was used last."""
    folders = [_filled(tmp_path, name, 0) for name in ("old", "older")]
    for age, folder in zip((2, 1), folders, strict=True):
        os.utime(folder / "entry.json", (age, age))
    with _cache(tmp_path, VIEW + PLANNED) as cache:
        _fill(_opened(cache, "new"), 0)
    assert [folder.exists() for folder in folders] == [True, False]
    with _cache(tmp_path, 2 * VIEW) as cache:  # used last in its place
        _opened(cache, "old", VIEW).mark_used()
        assert _opened(cache, "third", VIEW) is not None
    assert folders[0].exists()


def test_opening_again_removes_nothing(tmp_path):
    """Catches an entry whose disk counts twice: what it has and what it may have."""
    one, other = (_filled(tmp_path, name, 0) for name in ("one", "other"))
    with _cache(tmp_path, VIEW + PLANNED) as cache:
        assert _opened(cache, "one").folder == one
    assert other.exists()


def test_what_another_process_uses_stays(tmp_path):
    """Catches the activations of a running training removed by one that starts."""
    with _cache(tmp_path) as running:
        entry = _opened(running, "running")
        _fill(entry, 0)
        with _cache(tmp_path, PLANNED + VIEW // 2) as starting:
            _fill(_opened(starting, "starting"), 0)
            assert _n_whole(entry, 0) == 10
            assert entry.folder.exists()
            # what the other was granted is not there to be taken
            assert _n_whole(starting._entries[0], 0) == 5
        assert running.free_bytes({"name": "third"}) == 9 * PLANNED
    with _cache(tmp_path, PLANNED) as later:  # nobody uses it any more
        _opened(later, "later")
    assert not entry.folder.exists()


def test_what_was_granted_can_not_be_asked_for_again(tmp_path):
    """Catches two splits, or two processes, that each plan with the whole bound."""
    one, other = _cache(tmp_path), _cache(tmp_path)
    _opened(one, "val", 3 * PLANNED)
    for cache in (one, other):
        assert cache.free_bytes({"name": "train"}) == 7 * PLANNED
        assert cache.free_bytes({"name": "val"}) == 10 * PLANNED


def test_other_seeds_fill_no_more_than_the_bound(tmp_path):
    """Catches disk that grows with every seed: other views of the same patches are other files."""
    bound = 2 * VIEW + 4096
    folder = _filled(tmp_path, "a", 0, 1, max_bytes=bound)
    with _cache(tmp_path, bound) as cache:
        entry = _opened(cache, "a", 2 * PLANNED)
        for view in (2, 3):
            _fill(entry, view)
            assert _n_whole(entry, view) == 10
            assert entry.used_bytes <= bound
    assert sorted(file.name for file in folder.glob("*.bin")) == ["view-2.bin", "view-3.bin"]


def test_other_views_stay_where_there_is_room(tmp_path):
    """Catches an entry held to the size that one run asked for."""
    folder = _filled(tmp_path, "a", 0, 1)
    with _cache(tmp_path) as cache:
        entry = _opened(cache, "a", 2 * PLANNED)
        _fill(entry, 2, 3)
        assert entry.used_bytes == 4 * VIEW
    assert len(list(folder.glob("*.bin"))) == 4


def test_a_lowered_bound_is_kept(tmp_path):
    """Catches an entry that stays larger than cache.max_gb because it is wanted again."""
    folder = _filled(tmp_path, "a", 0, 1, 2)
    with _cache(tmp_path, 2 * VIEW) as cache:
        assert cache.free_bytes({"name": "a"}) == 2 * VIEW
        assert _opened(cache, "a").used_bytes == 0
    _filled(tmp_path, "a", 0, 1, 2)
    with _cache(tmp_path, 0) as cache:
        assert cache.free_bytes({"name": "a"}) == 0
        assert _opened(cache, "a", 0) is None
    assert not folder.exists()


def _n_open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_closing_gives_descriptors_and_entries_back(tmp_path):
    """Catches open files of every trial, whose disk stays taken after they are removed."""
    before = _n_open_files()
    folder = _filled(tmp_path, "a", 0, 1)
    assert _n_open_files() == before
    with _cache(tmp_path, PLANNED) as cache:
        _opened(cache, "b")
    assert not folder.exists()


def test_a_margin_of_the_disk_is_left(tmp_path, monkeypatch, caplog):
    """Catches a disk filled to its last byte, on which no checkpoint can be written."""
    cache = _cache(tmp_path)
    entry = _opened(cache, "a")
    monkeypatch.setattr(module, "DISK_MARGIN_BYTES", 10**18)
    assert cache.free_bytes({"name": "b"}) == 0
    _fill(entry, 0)
    assert entry.used_bytes == 0
    assert "activations not kept yet are computed in every epoch" in caplog.text


def test_a_disk_too_full_to_open_an_entry(tmp_path, monkeypatch, caplog):
    """Catches a training that ends because nothing can be kept."""

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(durable, "_fsync_file", full)
    assert _opened(_cache(tmp_path), "a") is None
    assert "activations can't be kept (disk full: writing" in caplog.text


def test_activations_give_way(tmp_path):
    """Catches a checkpoint that fails beside gigabytes that could be computed again."""
    unused = _filled(tmp_path, "unused", 0)
    with _cache(tmp_path) as cache, _cache(tmp_path) as other:
        mine, theirs = _opened(cache, "mine"), _opened(other, "theirs")
        _fill(mine, 0)
        _fill(theirs, 0)
        cache.give_way()
        assert not unused.exists()
        assert (mine.used_bytes, theirs.used_bytes) == (0, VIEW)
        assert _n_whole(mine, 0) == 0
        _fill(mine, 1)
        assert mine.used_bytes == 0
