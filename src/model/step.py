"""The compiled training step and the compiled forward pass of a tail."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from src.model.averaging import BatchStatistics, WeightAverage
from src.model.optimizers import make_optimizer, rate_groups
from src.params import FinetuneParams, TrainParams

if TYPE_CHECKING:
    import keras


def weighted_loss(
    logits: Any,
    labels: Any,
    weights: Any,
    counted: Any,
    *,
    label_smoothing: float,
    n_counted: Any,
) -> Any:
    """Class-weighted binary cross-entropy of these patches' share of a batch, a scalar.

    All tensors are (n,) float32; ``counted`` is 1 for patches that belong to the batch and 0 for
    its padding, and ``n_counted`` is the sum of ``counted`` over the whole batch: summed over the
    replicas of a batch, the shares give its loss. Labels y become y (1 - e) + e / 2, where e is
    ``label_smoothing`` (Szegedy et al. 2016, section 7).
    """
    import tensorflow as tf

    smoothed = labels * (1 - label_smoothing) + label_smoothing / 2
    losses = tf.nn.sigmoid_cross_entropy_with_logits(labels=smoothed, logits=logits)
    return tf.reduce_sum(losses * weights * counted) / n_counted


class TailStep:
    """One training step and one forward pass for the trainable part of a model.

    ``jit_compile`` turns XLA on for all of a step; ``jit_update`` for the optimizers and the
    average alone, whose dozen passes over the weights it makes two or three. ``backbone`` names the
    network whose blocks ``rate_decay`` tells apart; without it every weight learns at the same
    rate.

    Attributes
    ----------
    train : (inputs, labels, weights, counted) → the batch's loss, a scalar tensor not waited for
    forward : inputs → logits (n,), in inference mode
    variables : all state besides the tail's own variables: of the optimizers and of the average.
        Saved and restored in this order, with the tail's, a run goes on as if never interrupted
    averaging : the moving average of the weights, None where ``average_decay`` is null
    """

    def __init__(
        self,
        tail: "keras.Model",
        params: TrainParams,
        *,
        jit_compile: bool,
        jit_update: bool = False,
        backbone: str | None = None,
    ) -> None:
        import tensorflow as tf

        rate_decay = params.rate_decay if isinstance(params, FinetuneParams) else 1.0
        self._tail = tail
        self._label_smoothing = params.label_smoothing
        self._groups = rate_groups(tail, backbone=backbone, rate_decay=rate_decay)
        # an optimizer a group: Adam takes no notice of gradients that are scaled
        self._optimizers = [make_optimizer(params, group.variables) for group in self._groups]
        self._trained = [variable for group in self._groups for variable in group.variables]
        self.averaging: WeightAverage | None = None
        self.variables = [v for optimizer in self._optimizers for v in optimizer.variables]
        if params.average_decay is not None:
            self.averaging = WeightAverage(self._trained, decay=params.average_decay)
            self._statistics = BatchStatistics(tail, jit_compile=jit_compile)
            self.variables += self.averaging.variables

        self._apply = (
            tf.function(self._apply_gradients, jit_compile=True, autograph=False)
            if jit_update
            else self._apply_gradients
        )

        @tf.function(jit_compile=jit_compile, autograph=False)
        def train(inputs: Any, labels: Any, weights: Any, counted: Any) -> Any:
            return self.update(inputs, labels, weights, counted, tf.reduce_sum(counted))

        @tf.function(jit_compile=jit_compile, autograph=False)
        def forward(inputs: Any) -> Any:
            return tail(inputs, training=False)[:, 0]

        self.train = train
        self.forward = forward

    def update(self, inputs: Any, labels: Any, weights: Any, counted: Any, n_counted: Any) -> Any:
        """One step on a replica's share of a batch, not compiled; returns the share of the loss.

        In a replica context the optimizers sum the gradients over the replicas, so with
        ``n_counted`` of the whole batch (see :func:`weighted_loss`) the step is that of the batch.
        """
        import tensorflow as tf

        with tf.GradientTape() as tape:
            logits = self._tail(inputs, training=True)[:, 0]
            loss = weighted_loss(
                logits,
                labels,
                weights,
                counted,
                label_smoothing=self._label_smoothing,
                n_counted=n_counted,
            )
        self._apply(tape.gradient(loss, self._trained))
        return loss

    def _apply_gradients(self, gradients: list[Any]) -> None:
        remaining = iter(gradients)
        for optimizer, group in zip(self._optimizers, self._groups, strict=True):
            optimizer.apply([next(remaining) for _ in group.variables], group.variables)
        if self.averaging is not None:
            self.averaging.update()

    def set_rate(self, rate: float) -> None:
        """Learning rate of the next steps; each group's is this times its factor."""
        for optimizer, group in zip(self._optimizers, self._groups, strict=True):
            optimizer.learning_rate.assign(rate * group.factor)

    @contextmanager
    def averaged(self, inputs: Iterable[Any]) -> Iterator[None]:
        """The tail holds the averaged weights inside: for validation, and for what is kept as best.

        BatchNorm layers that are trained have the statistics that these weights give ``inputs``,
        batches of what enters the tail. Nothing changes where nothing is averaged. Not for
        training, nor for a checkpoint.
        """
        if self.averaging is None:
            yield
            return
        with self.averaging.in_place(), self._statistics.measured(inputs):
            yield
