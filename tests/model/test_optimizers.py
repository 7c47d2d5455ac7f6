"""Optimizers by one contract, decay that spares what it must, and rates by block."""

from typing import get_args

import keras
import numpy as np
import pytest

from src.model.optimizers import OPTIMIZERS, make_optimizer, rate_groups
from src.params import TrainParams
from tests.model.support import small_tail, train_params

pytestmark = pytest.mark.tensorflow


def _variable(value, name="kernel"):
    return keras.Variable(np.full(2, value, np.float32), name=name)


def _steps(optimizer, variable, n: int) -> None:
    """Descend (x - 3)² / 2, whose gradient is x - 3."""
    for _ in range(n):
        optimizer.apply([variable.value - 3.0], [variable])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_contract(name):
    """Every optimizer descends, stands still at rate 0, and goes on bit-equal from its state."""
    params = train_params(optimizer=name)
    whole = _variable(0.0)
    optimizer = make_optimizer(params, [whole])
    optimizer.learning_rate.assign(0.0)
    _steps(optimizer, whole, 1)
    np.testing.assert_array_equal(whole, [0, 0])
    optimizer.learning_rate.assign(0.1)
    _steps(optimizer, whole, 3)
    assert 0 < whole.numpy()[0] < 3

    resumed = _variable(0.0)
    resumed.assign(whole)
    other = make_optimizer(params, [resumed])
    for mine, theirs in zip(other.variables, optimizer.variables, strict=True):
        mine.assign(theirs)
    _steps(optimizer, whole, 2)
    _steps(other, resumed, 2)
    np.testing.assert_array_equal(resumed, whole)


def test_every_optimizer_of_params_has_an_entry():
    """Catches a name that params.yaml accepts and training doesn't know."""
    assert set(get_args(TrainParams.model_fields["optimizer"].annotation)) == set(OPTIMIZERS)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_decay_shrinks_kernels_and_spares_the_rest(name):
    """Catches decay by the gradient, decay of biases and of BatchNorm, and decay that is lost."""
    variables = [_variable(4.0, name) for name in ("kernel", "bias", "gamma", "beta")]
    optimizer = make_optimizer(train_params(optimizer=name, weight_decay=0.5), variables)
    optimizer.learning_rate.assign(0.1)
    optimizer.apply([np.zeros(2, np.float32)] * 4, variables)
    kernel, *others = [variable.numpy()[0] for variable in variables]
    assert kernel == pytest.approx(4 * (1 - 0.1 * 0.5))
    assert others == [4, 4, 4]


def test_sgd_takes_nesterov_steps():
    """Catches plain momentum: by hand, gradient 1, momentum 0.5, rate 1."""
    variable = _variable(0.0)
    optimizer = make_optimizer(train_params(optimizer="sgd", momentum=0.5), [variable])
    optimizer.learning_rate.assign(1.0)
    gradient = np.ones(2, np.float32)
    optimizer.apply([gradient], [variable])  # velocity -1, step -0.5 - 1
    assert variable.numpy()[0] == pytest.approx(-1.5)
    optimizer.apply([gradient], [variable])  # velocity -1.5, step -0.75 - 1
    assert variable.numpy()[0] == pytest.approx(-3.25)


def test_first_step_of_adam_is_the_rate():
    """Catches another rule under its name: the first step has the size of the rate."""
    variable = _variable(4.0)
    optimizer = make_optimizer(train_params(optimizer="adam"), [variable])
    optimizer.learning_rate.assign(0.25)
    optimizer.apply([np.full(2, 7.0, np.float32)], [variable])
    assert variable.numpy()[0] == pytest.approx(3.75)


def test_groups_follow_the_blocks_by_name():
    """Catches powers counted from the bottom, and a stem that learns as fast as the head."""
    groups = rate_groups(small_tail(), backbone="resnet50", rate_decay=0.5)
    named = {group.factor: {v.path.split("/")[0] for v in group.variables} for group in groups}
    assert named == {
        1.0: {"logit"},
        0.5: {"conv5_block3_1_conv"},
        0.25: {"conv5_block2_1_conv"},
        0.5**17: {"conv1_conv"},
    }


@pytest.mark.parametrize(("backbone", "rate_decay"), [("resnet50", 1.0), (None, 0.5)])
def test_one_group_where_nothing_differs(backbone, rate_decay):
    """Catches an optimizer a block where one would do."""
    tail = small_tail()
    (group,) = rate_groups(tail, backbone=backbone, rate_decay=rate_decay)
    assert group.factor == 1.0
    assert [v.path for v in group.variables] == [v.path for v in tail.trainable_variables]


def test_frozen_layers_are_in_no_group():
    """Catches an optimizer that is given weights the tape has no gradient for."""
    tail = small_tail()
    tail.get_layer("conv5_block3_1_conv").trainable = False
    groups = rate_groups(tail, backbone="resnet50", rate_decay=0.5)
    assert [group.factor for group in groups] == [1.0, 0.25, 0.5**17]
