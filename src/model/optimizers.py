"""Optimizers, groups of weights that learn at rates of their own, and the average of the weights.

A new optimizer is one entry of :data:`OPTIMIZERS` and its name in ``src.params``; the contract test
in ``tests/model/test_optimizers.py`` covers every entry.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from src.model.backbone import BACKBONES, block_of
from src.model.classifier import is_stem
from src.params import TrainParams

_UNDECAYED = ["bias", "gamma", "beta"]


def _adam(_params: TrainParams) -> Any:
    """Kingma & Ba 2015."""
    return keras.optimizers.Adam()


def _adamw(params: TrainParams) -> Any:
    """Loshchilov & Hutter 2019: the decay is no part of the gradient; it is scaled by the rate."""
    return _sparing(keras.optimizers.AdamW(weight_decay=params.weight_decay))


def _sgd(params: TrainParams) -> Any:
    """Momentum in the form of Sutskever et al. 2013; the decay is decoupled, as in AdamW."""
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


def make_optimizer(params: TrainParams, variables: list[Any]) -> keras.optimizers.Optimizer:
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


def rate_groups(model: keras.Model, *, backbone: str | None, rate_decay: float) -> list[RateGroup]:
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


class WeightAverage:
    """Follows the weights step by step; the average, not the weights, is what is validated.

    average ← d · average + (1 - d) · weight, where d = min(decay, (1 + t) / (10 + t)) and t counts
    the steps from 0: while t is small the first, untrained weights are soon forgotten.

    Attributes
    ----------
    variables : the whole state, the step count first; to be saved and restored in this order
    """

    def __init__(self, weights: list[Any], *, decay: float) -> None:
        self._weights = weights
        self._decay = decay
        # each replica computes the same average, so the first one's is every one's
        self._n_steps = keras.Variable(
            0, dtype="int64", trainable=False, aggregation="only_first_replica", name="n_averaged"
        )
        self._averages = [
            keras.Variable(
                weight.numpy(),
                dtype=weight.dtype,
                trainable=False,
                aggregation="only_first_replica",
                name="average",
            )
            for weight in weights
        ]
        self.variables = [self._n_steps, *self._averages]

    def update(self) -> None:
        """Take in the weights as they stand after a step; part of the compiled step."""
        t = keras.ops.cast(self._n_steps, "float32")
        decay = keras.ops.minimum(self._decay, (1 + t) / (10 + t))
        for average, weight in zip(self._averages, self._weights, strict=True):
            average.assign(average - (1 - decay) * (average - weight))
        self._n_steps.assign(self._n_steps + 1)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The weights hold their averages inside, and exactly what they held before, after."""
        with _restored(self._weights):
            _assign(self._weights, [average.numpy() for average in self._averages])
            yield


class BatchStatistics:
    """Moving statistics of the BatchNorm layers that are trained, for weights other than the raw.

    The moving mean and variance follow the raw weights from step to step. Of averaged weights they
    are measured: the means, over batches, of each batch's mean and variance (as
    ``torch.optim.swa_utils.update_bn`` does; Izmailov et al. 2018, section 3.2).
    """

    def __init__(self, tail: keras.Model, *, jit_compile: bool) -> None:
        self._layers = [
            layer
            for layer in tail.layers
            if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable
        ]
        self._variables = [v for x in self._layers for v in (x.moving_mean, x.moving_variance)]
        if not self._layers:
            return
        # Not the whole tail: its dropout would draw numbers that training is to draw. By its own
        # nodes: ``layer.output`` may be of another cut of the classifier.
        nodes = [node for of_depth in tail._nodes_by_depth.values() for node in of_depth]
        outputs = [node.output_tensors[0] for node in nodes if node.operation in self._layers]
        normalised = keras.Model(tail.input, outputs)

        @tf.function(jit_compile=jit_compile, autograph=False)
        def forward(inputs: Any) -> None:
            normalised(inputs, training=True)

        self._forward = forward

    @contextmanager
    def measured(self, inputs: Iterable[Any]) -> Iterator[None]:
        """The layers hold the statistics of these batches inside, and what they held before, after.

        ``inputs`` isn't read where no BatchNorm layer is trained.
        """
        with _restored(self._variables):
            if self._layers:
                self._measure(inputs)
            yield

    def _measure(self, inputs: Iterable[Any]) -> None:
        momenta = [layer.momentum for layer in self._layers]
        sums, n = [np.zeros(v.shape) for v in self._variables], 0
        try:
            for layer in self._layers:
                layer.momentum = 0.0  # a batch's statistics take the place of the last one's
            for batch in inputs:
                self._forward(batch)
                sums = [s + v.numpy() for s, v in zip(sums, self._variables, strict=True)]
                n += 1
        finally:
            for layer, momentum in zip(self._layers, momenta, strict=True):
                layer.momentum = momentum
        _assign(self._variables, [total / n for total in sums])


@contextmanager
def _restored(variables: list[Any]) -> Iterator[None]:
    before = [variable.numpy() for variable in variables]
    try:
        yield
    finally:
        _assign(variables, before)


def _assign(weights: list[Any], values: list[Any]) -> None:
    for weight, value in zip(weights, values, strict=True):
        weight.assign(value)
