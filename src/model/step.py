"""The compiled training step and forward pass of a tail, and the ways in which they are computed.

One CPU, one GPU, or several GPUs of a host sharing each batch (``MirroredStrategy``): the same
code. Everything that makes variables runs inside :func:`device_scope`. Several hosts are out of
scope: Keras 3 doesn't train under ``MultiWorkerMirroredStrategy``.

Mixed precision computes the top blocks in bfloat16 and keeps their weights in float32. bfloat16 has
float32's range, so no loss scaling is needed. GPUs before compute capability 8.0 (T4, V100, P100)
have float16 alone and stay in float32.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal

import keras
import tensorflow as tf

from src.model.classifier import LOGIT, boundary_layer
from src.model.fast_gradient import fast_input_gradients
from src.model.optimizers import BatchStatistics, WeightAverage, make_optimizer, rate_groups
from src.params import FinetuneParams, RuntimeParams, TrainParams
from src.system.errors import ProjectError

_FIRST_CAPABILITY = (8, 0)  # of GPUs made for bfloat16


class BatchNotDivisible(ProjectError):
    """A batch can't be shared evenly by the GPUs."""


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
        tail: keras.Model,
        params: TrainParams,
        *,
        jit_compile: bool,
        jit_update: bool = False,
        backbone: str | None = None,
    ) -> None:
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


def device_scope(n_gpus: int) -> AbstractContextManager[Any]:
    """Variables made inside are kept alike on ``n_gpus`` GPUs; below two nothing changes."""
    if n_gpus < 2:
        return nullcontext()
    return mirrored_scope([f"GPU:{i}" for i in range(len(tf.config.list_logical_devices("GPU")))])


def mirrored_scope(devices: list[str]) -> AbstractContextManager[Any]:
    """Variables made inside are kept alike on ``devices`` (``GPU:0``, …)."""
    scope: AbstractContextManager[Any] = tf.distribute.MirroredStrategy(devices).scope()
    return scope


def in_replicas(step: TailStep, batch_size: int) -> TailStep | ReplicatedStep:
    """``step`` for the devices of the scope this is called in.

    Raises
    ------
    BatchNotDivisible
        ``batch_size`` is no multiple of their number.
    """
    strategy = tf.distribute.get_strategy()
    n = strategy.num_replicas_in_sync
    if n == 1:
        return step
    if batch_size % n:
        raise BatchNotDivisible(
            f"batch_size must be a multiple of the {n} GPUs in use (got {batch_size}); "
            "change it, or set runtime.device: gpu"
        )
    return ReplicatedStep(step, strategy)


class ReplicatedStep:
    """A :class:`TailStep` whose batches are cut into one share for each device.

    The sum of the shares' losses and gradients is that of the batch, so a step is the same as on
    one device, up to rounding and, with ``batch_norm: train``, statistics that are each share's.
    """

    def __init__(self, step: TailStep, strategy: tf.distribute.Strategy) -> None:
        self._strategy = strategy
        self.variables = step.variables
        self.set_rate = step.set_rate
        self.averaged = step.averaged
        self.forward = step.forward

        @tf.function(autograph=False)
        def train(inputs: Any, labels: Any, weights: Any, counted: Any, n_counted: Any) -> Any:
            shares = strategy.run(step.update, args=(inputs, labels, weights, counted, n_counted))
            return strategy.reduce(tf.distribute.ReduceOp.SUM, shares, axis=None)

        self._train = train

    def train(self, inputs: Any, labels: Any, weights: Any, counted: Any) -> Any:
        """(inputs, labels, weights, counted) of a whole batch → its loss, a scalar tensor."""
        n_counted = counted.sum()
        shares = [self._shared(values) for values in (inputs, labels, weights, counted)]
        return self._train(*shares, n_counted)

    def _shared(self, values: Any) -> Any:
        size = len(values) // self._strategy.num_replicas_in_sync

        def share(context: Any) -> Any:
            start = context.replica_id_in_sync_group * size
            return tf.convert_to_tensor(values[start : start + size])

        return self._strategy.experimental_distribute_values_from_function(share)


def step_ways(runtime: RuntimeParams, *, backbone: str, depth: int, n_gpus: int) -> dict[str, bool]:
    """How a step is computed: gradients the fast way, XLA in all or in part, bfloat16.

    By what was measured (the table in docs/training.md): on a CPU fast gradients wherever there are
    float32 convolutions to train, and XLA for the optimizer alone; on one GPU XLA for the whole
    step, on several none. Where nothing is frozen and ``runtime.deterministic`` is set, never for
    the whole step: TensorFlow has no deterministic gradient of the stem's max pooling under XLA.
    """
    bfloat16 = uses_bfloat16(runtime.mixed_precision)
    pooling_learns = boundary_layer(backbone=backbone, depth=depth) is None
    possible = n_gpus < 2 and not (pooling_learns and runtime.deterministic)
    by_default = depth > 0 and n_gpus == 1
    return {
        "fast_gradient": depth > 0 and n_gpus == 0 and not bfloat16,
        "xla": possible and {"on": True, "off": False}.get(runtime.xla, by_default),
        "xla_update": depth > 0 and n_gpus < 2 and runtime.xla != "off",
        "bfloat16": bfloat16,
    }


@contextmanager
def stepping(tail: keras.Model, how: Mapping[str, bool]) -> Iterator[None]:
    """What is traced inside computes ``tail`` in the ways that :func:`step_ways` chose."""
    with (
        fast_input_gradients(tail) if how["fast_gradient"] else nullcontext(),
        bfloat16_layers(tail) if how["bfloat16"] else nullcontext(),
    ):
        yield


def uses_bfloat16(setting: Literal["auto", "on", "off"]) -> bool:
    """Whether to train in bfloat16; ``auto``: where every visible GPU is made for it."""
    if setting != "auto":
        return setting == "on"
    gpus = tf.config.get_visible_devices("GPU")
    details = [tf.config.experimental.get_device_details(gpu) for gpu in gpus]
    return bool(gpus) and all(
        detail.get("compute_capability", (0, 0)) >= _FIRST_CAPABILITY for detail in details
    )


@contextmanager
def bfloat16_layers(model: keras.Model) -> Iterator[None]:
    """Every layer but the logit computes in bfloat16 while the block runs; variables don't change.

    Layers whose policy was changed get their own back, so that a saved file is the same.
    """
    layers = [layer for layer in model.layers if layer.name != LOGIT]
    before = [layer.dtype_policy for layer in layers]
    try:
        for layer in layers:
            layer.dtype_policy = keras.DTypePolicy("mixed_bfloat16")
        yield
    finally:
        for layer, policy in zip(layers, before, strict=True):
            layer.dtype_policy = policy
