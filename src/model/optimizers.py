"""Optimizers, and the groups of weights that learn at rates of their own.

A new optimizer is one entry of :data:`OPTIMIZERS` and its name in ``src.params``; the contract test
in ``tests/model/test_optimizers.py`` covers every entry.
"""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from src.model.backbone import BACKBONES, block_of
from src.model.freezing import is_stem
from src.params import TrainParams

if TYPE_CHECKING:
    import keras

_UNDECAYED = ["bias", "gamma", "beta"]


def _adam(_params: TrainParams) -> Any:
    """Kingma & Ba 2015."""
    import keras

    return keras.optimizers.Adam()


def _adamw(params: TrainParams) -> Any:
    """Loshchilov & Hutter 2019: the decay is no part of the gradient; it is scaled by the rate."""
    import keras

    return _sparing(keras.optimizers.AdamW(weight_decay=params.weight_decay))


def _sgd(params: TrainParams) -> Any:
    """Momentum in the form of Sutskever et al. 2013; the decay is decoupled, as in AdamW."""
    import keras

    optimizer = keras.optimizers.SGD(
        momentum=params.momentum,
        nesterov=params.momentum > 0,
        weight_decay=params.weight_decay or None,
    )
    return _sparing(optimizer)


def _sparing(optimizer: Any) -> Any:
    optimizer.exclude_from_weight_decay(var_names=_UNDECAYED)
    return optimizer


OPTIMIZERS: dict[str, Callable[[TrainParams], Any]] = {
    "adam": _adam,
    "adamw": _adamw,
    "sgd": _sgd,
}


def make_optimizer(params: TrainParams, variables: list[Any]) -> "keras.optimizers.Optimizer":
    """The optimizer ``params`` names, with its state for ``variables`` in place."""
    optimizer = OPTIMIZERS[params.optimizer](params)
    optimizer.build(variables)
    return optimizer


@dataclass(frozen=True)
class RateGroup:
    """Trainable variables that share a rate.

    Attributes
    ----------
    factor : of the learning rate, above 0, at most 1
    variables : in the model's order
    """

    factor: float
    variables: list[Any]


def rate_groups(
    model: "keras.Model", *, backbone: str | None, rate_decay: float
) -> list[RateGroup]:
    """Discriminative rates (Howard & Ruder 2018, section 3.1): the lower a block, the slower.

    The head has factor 1, the k-th residual block from the top ``rate_decay`` to the power k, the
    stem one power more than the lowest block. Fastest group first; one group when ``rate_decay``
    is 1 or there is no backbone. Layers are known by name, so ``model`` may be a tail.
    """
    if rate_decay == 1 or backbone is None:
        return [RateGroup(1.0, list(model.trainable_variables))]
    blocks = BACKBONES[backbone].blocks
    by_power: dict[int, list[Any]] = defaultdict(list)
    for layer in model.layers:
        block = block_of(layer.name, blocks)
        if block is not None:
            power = len(blocks) - block
        else:
            power = len(blocks) + 1 if is_stem(layer) else 0
        by_power[power] += layer.trainable_variables
    return [
        RateGroup(rate_decay**power, variables)
        for power, variables in sorted(by_power.items())
        if variables
    ]
