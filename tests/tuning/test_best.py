"""The weights that are kept, and the folders that are not kept for ever."""

import os

import pytest
from filelock import FileLock

from src import paths
from src.tuning.best import MODEL, keep_if_best, kept_model
from src.tuning.tidying import keep_newest


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "CACHE", tmp_path / "cache")
    return tmp_path / "best"


def _keep(root, number: int, score: float, weights: str, *, study: str = "s") -> bool:
    return keep_if_best(
        study,
        lambda file: file.write_text(weights),
        number=number,
        score=score,
        sha256=weights,
        root=root,
    )


def test_only_the_best_is_kept(root):
    """Catches the last one's weights as the best one's."""
    assert _keep(root, 0, 0.7, "a")
    assert not _keep(root, 1, 0.6, "b")
    assert _keep(root, 2, 0.8, "c")
    assert kept_model("s", "a", root=root) is None
    assert kept_model("s", "c", root=root).read_text() == "c"


def test_a_stand_in_finds_the_weights_of_the_trial_that_was_killed(root):
    """Catches weights that are lost: trial 0 was killed after saving, 3 did the same again."""
    _keep(root, 0, 0.8, "same")
    _keep(root, 3, 0.8, "same")
    assert kept_model("s", "same", root=root).name == MODEL


@pytest.mark.parametrize("order", [(1, 2), (2, 1)])
def test_of_equals_the_first_is_the_best_whoever_ends_first(root, order):
    """Catches another trial's weights than that of the table, where two workers tie."""
    for number in order:
        _keep(root, number, 0.8, f"of {number}")
    assert kept_model("s", "of 1", root=root) is not None


def test_old_folders_go_and_those_in_use_stay(tmp_path):
    """Catches a cache that grows for ever, and a head deleted while it is read."""
    for age in range(6):
        folder = tmp_path / f"age{age}"
        folder.mkdir()
        os.utime(folder, (1_000_000 - age, 1_000_000 - age))
    with FileLock(tmp_path / "age5.lock"):
        assert keep_newest(tmp_path, 2) == ["age2", "age3", "age4"]
    (tmp_path / "new").mkdir()
    assert keep_newest(tmp_path, 0) == ["age0", "age1", "age5"]
