"""The rule for compiling a training step."""

import pytest

from src.model.step_choice import best_step


@pytest.mark.parametrize(("depth", "fast"), [(0, False), (1, True), (16, True)])
def test_fast_gradients_where_a_convolution_is_trained(depth, fast):
    """Catches the slow gradient used for a tail with convolutions, and XLA on a CPU."""
    assert best_step(depth=depth) == (fast, False)
