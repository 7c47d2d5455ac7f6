"""Several GPUs of a host sharing each batch (``MirroredStrategy``), one or none: the same code.

Everything that makes variables runs inside :func:`device_scope`. Several hosts are out of scope:
Keras 3 doesn't train under ``MultiWorkerMirroredStrategy``.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from src.model.step import TailStep
from src.system.errors import ProjectError

if TYPE_CHECKING:
    import tensorflow as tf


class BatchNotDivisible(ProjectError):
    """A batch can't be shared evenly by the GPUs."""


def device_scope(n_gpus: int) -> AbstractContextManager[Any]:
    """Variables made inside are kept alike on ``n_gpus`` GPUs; below two nothing changes."""
    if n_gpus < 2:
        return nullcontext()
    import tensorflow as tf

    return mirrored_scope([f"GPU:{i}" for i in range(len(tf.config.list_logical_devices("GPU")))])


def mirrored_scope(devices: list[str]) -> AbstractContextManager[Any]:
    """Variables made inside are kept alike on ``devices`` (``GPU:0``, …)."""
    import tensorflow as tf

    scope: AbstractContextManager[Any] = tf.distribute.MirroredStrategy(devices).scope()
    return scope


def in_replicas(step: TailStep, batch_size: int) -> "TailStep | ReplicatedStep":
    """``step`` for the devices of the scope this is called in.

    Raises
    ------
    BatchNotDivisible
        ``batch_size`` is no multiple of their number.
    """
    import tensorflow as tf

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

    def __init__(self, step: TailStep, strategy: "tf.distribute.Strategy") -> None:
        import tensorflow as tf

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
        import tensorflow as tf

        size = len(values) // self._strategy.num_replicas_in_sync

        def share(context: Any) -> Any:
            start = context.replica_id_in_sync_group * size
            return tf.convert_to_tensor(values[start : start + size])

        return self._strategy.experimental_distribute_values_from_function(share)
