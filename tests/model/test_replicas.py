"""Several devices that share each batch do what one does (virtual CPUs: no GPU is needed)."""

import json
import subprocess
import sys

import pytest
import tensorflow as tf

from src import paths
from src.model.step import BatchNotDivisible, in_replicas

pytestmark = [pytest.mark.tensorflow, pytest.mark.timeout(300)]


def _trained(n_replicas: int, *modes: str) -> dict:
    command = [sys.executable, "-m", "tests.model.two_replicas", str(n_replicas), *modes]
    done = subprocess.run(command, cwd=paths.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def on_one() -> dict:
    """What one device did, by mode of BatchNorm."""
    return _trained(1, "frozen", "train")


def test_two_devices_do_the_steps_of_one(on_one):
    """Catches losses or gradients averaged twice, and padding that counts on one device."""
    one, two = on_one["frozen"], _trained(2, "frozen")["frozen"]
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-4)
    assert two["squares"] == pytest.approx(one["squares"], rel=1e-5)


def test_two_devices_train_batch_norm(on_one):
    """Catches statistics that can't be updated on more than one device, or aren't each share's."""
    one, two = on_one["train"], _trained(2, "train")["train"]
    assert two["losses"][0] == pytest.approx(one["by_halves"], rel=1e-4)
    assert two["losses"][0] != pytest.approx(one["losses"][0], rel=1e-3)


def test_a_batch_that_can_not_be_shared_is_refused(monkeypatch):
    """Catches a crash deep in TensorFlow, or patches that are dropped."""

    class Three:
        num_replicas_in_sync = 3

    monkeypatch.setattr(tf.distribute, "get_strategy", Three)
    with pytest.raises(BatchNotDivisible, match=r"multiple of the 3 GPUs in use \(got 64\)"):
        in_replicas(None, batch_size=64)
