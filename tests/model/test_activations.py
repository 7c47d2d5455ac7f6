"""One file of activations: what is kept comes back, what is damaged or torn is computed again."""

import signal
import subprocess
import sys
import threading

import numpy as np
import pytest

from src import paths
from src.model.activations import ActivationFile, ActivationsLost, ActivationsOverflow
from src.system.log import get_logger

LOG = get_logger("test")


N, SHAPE = 150, (2, 3)  # two whole blocks of 64 and one of 22
VALUES = np.random.default_rng(0).normal(size=(N, *SHAPE)).astype(np.float32)


class Computing:
    """Gives the true values and remembers which blocks it was asked for."""

    def __init__(self, values: np.ndarray = VALUES) -> None:
        self.values = values
        self.blocks: list[int] = []

    def __call__(self, block: int) -> np.ndarray:
        self.blocks.append(block)
        return self.values[block * 64 : (block + 1) * 64]


def _file(folder, dtype="float32") -> ActivationFile:
    folder.mkdir(exist_ok=True)
    return ActivationFile(folder, 3, n=N, shape=SHAPE, dtype=dtype)


def _ensure(file: ActivationFile, compute, blocks=(0, 1, 2), *, may_grow=lambda _: True) -> int:
    counted = []
    file.ensure(blocks, compute, may_grow=may_grow, advance=counted.append, log=LOG)
    return sum(counted)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_what_was_kept_comes_back_in_another_process(tmp_path, dtype):
    """Catches a wrong offset of the short last block, and a ledger that isn't written."""
    assert _ensure(_file(tmp_path, dtype), Computing()) == N
    again, compute = _file(tmp_path, dtype), Computing()
    _ensure(again, compute)
    assert compute.blocks == []
    order = np.random.default_rng(1).permutation(N)
    assert again.has(order).all()
    np.testing.assert_array_equal(again.read(order), VALUES.astype(dtype)[order])


def test_only_what_is_missing_is_computed(tmp_path):
    """Catches an interrupted fill that starts from the beginning."""
    _ensure(_file(tmp_path), Computing(), blocks=[1])
    compute = Computing()
    _ensure(_file(tmp_path), compute)
    assert compute.blocks == [0, 2]


def test_a_kill_keeps_what_the_ledger_names(tmp_path):
    """Catches blocks that count as kept before they are on disk, and a fill that starts over."""
    code = """
import os, signal, sys
from pathlib import Path
import src.model.activations as activations
from tests.model.test_activations import Computing, _ensure, _file

activations._LEDGER_EVERY_S = -1.0
true = Computing()
dies = lambda block: os.kill(os.getpid(), signal.SIGKILL) if block == 2 else true(block)
_ensure(_file(Path(sys.argv[1])), dies)
"""
    died = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=paths.ROOT)
    assert died.returncode == -signal.SIGKILL
    file, compute = _file(tmp_path), Computing()
    _ensure(file, compute)
    assert compute.blocks == [2]
    np.testing.assert_array_equal(file.read(np.arange(N)), VALUES)


def test_a_flipped_bit_is_computed_again(tmp_path):
    """Catches training on damaged activations: nothing else would ever notice."""
    _ensure(_file(tmp_path), Computing())
    data = bytearray((tmp_path / "view-3.bin").read_bytes())
    data[64 * 24 + 5] ^= 1
    (tmp_path / "view-3.bin").write_bytes(data)
    file, compute = _file(tmp_path), Computing()
    _ensure(file, compute)
    assert compute.blocks == [1]
    np.testing.assert_array_equal(file.read(np.arange(N)), VALUES)


@pytest.mark.parametrize("ledger", ['{"crc32": [1]}', "{torn", '{"other": 1}', "[]"])
def test_a_ledger_that_is_none_is_as_good_as_empty(tmp_path, ledger):
    """Catches a crash on what an old version or a full disk left."""
    _ensure(_file(tmp_path), Computing())
    (tmp_path / "view-3.json").write_text(ledger)
    compute = Computing()
    _ensure(_file(tmp_path), compute)
    assert compute.blocks == [0, 1, 2]


def test_a_lost_data_file_is_noticed(tmp_path):
    """Catches a ledger that outlives the file it speaks of."""
    _ensure(_file(tmp_path), Computing())
    (tmp_path / "view-3.bin").unlink()
    compute = Computing()
    _ensure(_file(tmp_path), compute)
    assert compute.blocks == [0, 1, 2]


def test_values_that_do_not_fit_are_refused(tmp_path):
    """Catches infinities in float16, which would end as NaN in the loss."""
    with pytest.raises(ActivationsOverflow, match=r"up to 7e\+04 don't fit float16; set cache"):
        _ensure(_file(tmp_path, "float16"), Computing(np.full_like(VALUES, 7e4)))
    assert not (tmp_path / "view-3.json").exists()


def test_the_second_process_says_that_it_waits(tmp_path, caplog):
    """Catches a second process that hangs in silence, and two that compute the same block.

    The second opens the file while the first computes: opening must not wait for that.
    """
    caplog.set_level("INFO")
    computing, may_go_on = threading.Event(), threading.Event()
    compute = Computing()

    def slow(block):
        computing.set()
        assert may_go_on.wait(30)
        return compute(block)

    first = threading.Thread(target=_ensure, args=(_file(tmp_path), slow))
    first.start()
    assert computing.wait(30)
    file = _file(tmp_path)
    second = threading.Thread(target=_ensure, args=(file, compute))
    second.start()
    while "waits for it" not in caplog.text:
        second.join(0.01)
        assert second.is_alive()
    may_go_on.set()
    first.join()
    second.join()
    assert sorted(compute.blocks) == [0, 1, 2]
    np.testing.assert_array_equal(file.read(np.arange(N)), VALUES)


def test_filling_ends_where_no_more_may_be_taken(tmp_path):
    """Catches a bound that is asked for and not kept; a block that is mended takes nothing more."""
    file, compute = _file(tmp_path), Computing()
    allowed = iter([True, False])
    assert _ensure(file, compute, may_grow=lambda _: next(allowed)) == 64
    assert compute.blocks == [0]
    assert file.has(np.array([0, 63, 64])).tolist() == [True, True, False]
    (tmp_path / "view-3.bin").write_bytes(b"x" * N * 24)
    again = _file(tmp_path)
    _ensure(again, compute, blocks=[0], may_grow=lambda _: False)
    np.testing.assert_array_equal(again.read(np.arange(64)), VALUES[:64])


def test_a_file_of_another_size_is_left_alone(tmp_path):
    """Catches one user that truncates what another reads."""
    file = _file(tmp_path)
    _ensure(file, Computing())
    with pytest.raises(ActivationsLost, match="another size"):
        ActivationFile(tmp_path, 3, n=N, shape=(9,), dtype="float32")
    np.testing.assert_array_equal(file.read(np.arange(N)), VALUES)


def test_a_file_cut_short_in_use_is_noticed(tmp_path):
    """Catches rows of whatever was in memory: nothing else would ever notice."""
    file = _file(tmp_path)
    _ensure(file, Computing())
    with (tmp_path / "view-3.bin").open("r+b") as data:
        data.truncate(100 * 24 + 3)
    np.testing.assert_array_equal(file.read(np.arange(100)), VALUES[:100])
    with pytest.raises(ActivationsLost, match="cut short"):
        file.read(np.array([100]))
