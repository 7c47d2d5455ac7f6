"""Exponential moving average of the weights (Polyak & Juditsky 1992; Tarvainen & Valpola 2017)."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import keras


class WeightAverage:
    """Follows the weights step by step; the average, not the weights, is what is validated.

    average ← d · average + (1 - d) · weight, where d = min(decay, (1 + t) / (10 + t)) and t counts
    the steps from 0: while t is small the first, untrained weights are soon forgotten.

    Attributes
    ----------
    variables : the whole state, the step count first; to be saved and restored in this order
    """

    def __init__(self, weights: list[Any], *, decay: float) -> None:
        import keras

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
        from keras import ops

        t = ops.cast(self._n_steps, "float32")
        decay = ops.minimum(self._decay, (1 + t) / (10 + t))
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

    def __init__(self, tail: "keras.Model", *, jit_compile: bool) -> None:
        import keras
        import tensorflow as tf

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
