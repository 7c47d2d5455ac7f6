"""What is recorded of how TensorFlow was started, and what decides it."""

import json
import os
import subprocess
import sys

import pytest

from src import paths
from src.system.determinism import usable_cores

_CODE = """
import json
from src.params import load_params
from src.system.determinism import start_tensorflow
runtime = load_params().runtime.model_copy(update={"threads": 0, "device": "cpu"})
print(json.dumps(start_tensorflow(runtime, seed=1)))
"""


def _environment(**variables: str) -> dict:
    environment = {k: v for k, v in os.environ.items() if k != "TF_ENABLE_ONEDNN_OPTS"}
    done = subprocess.run(
        [sys.executable, "-c", _CODE],
        cwd=paths.ROOT,
        env=environment | variables,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.tensorflow
def test_onednn_is_on_unless_the_user_says_no():
    """Catches kernels, and so bits, that depend on the processor's name, unrecorded."""
    on = _environment()
    assert (on["onednn"], on["threads"]) == ("on", usable_cores())
    assert _environment(TF_ENABLE_ONEDNN_OPTS="0")["onednn"] == "off"


def test_threads_are_those_that_may_be_used(monkeypatch):
    """Catches 64 threads on the 2 cores that a cluster assigned."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5}, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert usable_cores() == 2
    monkeypatch.delattr(os, "sched_getaffinity")
    assert usable_cores() == 64
