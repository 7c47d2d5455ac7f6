"""One file of activations: what is kept comes back, what is damaged or torn is computed again."""

import threading

import numpy as np
import pytest

from src.model.activations import ActivationFile, ActivationsOverflow
from src.system.log import get_logger

LOG = get_logger("test")


class Killed(Exception):
    pass


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


def _ensure(file: ActivationFile, compute, blocks=(0, 1, 2)) -> int:
    counted = []
    file.ensure(blocks, compute, advance=counted.append, log=LOG)
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
    """Catches blocks that count as kept before they are on disk."""

    class Killed(Exception):
        pass

    def dies(block):
        if block == 2:
            raise Killed
        return Computing()(block)

    with pytest.raises(Killed):
        _ensure(_file(tmp_path), dies)
    compute = Computing()
    _ensure(_file(tmp_path), compute)
    assert 2 in compute.blocks


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


def test_two_at_once_compute_each_block_once(tmp_path):
    """Catches two workers that both run the trunk over everything."""
    compute = Computing()
    files = [_file(tmp_path) for _ in range(2)]
    threads = [threading.Thread(target=_ensure, args=(file, compute)) for file in files]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(compute.blocks) == [0, 1, 2]
    for file in files:
        np.testing.assert_array_equal(file.read(np.arange(N)), VALUES)
