"""Several devices that share each batch do what one does (virtual CPUs: no GPU is needed)."""

import json
import subprocess
import sys

import pytest

from src import paths
from src.model.replicas import BatchNotDivisible, in_replicas

pytestmark = [pytest.mark.tensorflow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def trained() -> list[dict]:
    """What one device did, and two; by mode of BatchNorm."""
    command = [sys.executable, "-m", "tests.model.two_replicas"]
    answers = []
    for n_replicas in ("1", "2"):
        done = subprocess.run(
            [*command, n_replicas], cwd=paths.ROOT, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[-3000:]
        answers.append(json.loads(done.stdout.splitlines()[-1]))
    return answers


def test_two_devices_do_the_steps_of_one(trained):
    """Catches losses or gradients averaged twice, and padding that counts on one device."""
    one, two = (answer["frozen"] for answer in trained)
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-4)
    assert two["squares"] == pytest.approx(one["squares"], rel=1e-5)


def test_two_devices_train_batch_norm(trained):
    """Catches statistics that can't be updated on more than one device, or aren't each share's."""
    one, two = (answer["train"] for answer in trained)
    assert two["losses"][0] == pytest.approx(one["by_halves"], rel=1e-4)
    assert two["losses"][0] != pytest.approx(one["losses"][0], rel=1e-3)


def test_a_batch_that_can_not_be_shared_is_refused(monkeypatch):
    """Catches a crash deep in TensorFlow, or patches that are dropped."""
    import tensorflow as tf

    class Three:
        num_replicas_in_sync = 3

    monkeypatch.setattr(tf.distribute, "get_strategy", Three)
    with pytest.raises(BatchNotDivisible, match=r"multiple of the 3 GPUs in use \(got 64\)"):
        in_replicas(None, batch_size=64)
