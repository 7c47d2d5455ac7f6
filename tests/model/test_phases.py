"""How a phase's step is computed, by device and parameters."""

import pytest

from src.model.phases import step_ways
from tests.model.support import runtime_params

pytestmark = pytest.mark.tensorflow  # mixed precision asks TensorFlow for GPUs


@pytest.mark.parametrize(
    ("depth", "n_gpus", "changes", "ways"),
    [
        (0, 0, {}, set()),  # one dense layer: neither pays
        (1, 0, {}, {"fast_gradient", "xla_update"}),
        (16, 0, {"xla": "on"}, {"fast_gradient", "xla_update", "xla"}),
        (16, 0, {"xla": "off"}, {"fast_gradient"}),
        (3, 0, {"mixed_precision": "on"}, {"bfloat16", "xla_update"}),  # fast in float32 only
        (3, 1, {}, {"xla", "xla_update"}),
        (3, 2, {"xla": "on"}, set()),  # the step of several GPUs isn't one function
    ],
)
def test_how_a_step_is_computed(depth, n_gpus, changes, ways):
    """Catches the slow gradient on a CPU, and a fit.json that names what wasn't used."""
    how = step_ways(runtime_params(**changes), depth=depth, n_gpus=n_gpus)
    assert {name for name, used in how.items() if used} == ways
