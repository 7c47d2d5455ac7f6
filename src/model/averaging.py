"""Exponential moving average of the weights (Polyak & Juditsky 1992; Tarvainen & Valpola 2017)."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


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
        raw = [weight.numpy() for weight in self._weights]
        _assign(self._weights, [average.numpy() for average in self._averages])
        try:
            yield
        finally:
            _assign(self._weights, raw)


def _assign(weights: list[Any], values: list[Any]) -> None:
    for weight, value in zip(weights, values, strict=True):
        weight.assign(value)
