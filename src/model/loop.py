"""The training loop of one phase: epochs, validation, schedule, early stopping, checkpoints."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from logging import Logger
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from src.data.batches import n_batches, ordered_batches, training_batches
from src.model.checkpoint import Checkpoint
from src.model.class_weights import ClassWeights
from src.model.inputs import Inputs
from src.model.schedules import Schedule, make_schedule
from src.model.step import TailStep
from src.model.stopping import Patience
from src.params import TrainParams
from src.system.errors import ProjectError
from src.system.progress import progress

if TYPE_CHECKING:
    import keras

Score = Callable[[NDArray[np.uint8], NDArray[np.float64]], float]
_CHECK_LOSS_EVERY = 20


class TrainingDiverged(ProjectError):
    """The loss is no longer a number."""


@dataclass(frozen=True)
class Phase:
    """Everything one phase of training works on.

    Attributes
    ----------
    name : ``train`` or ``finetune``
    tail : the trained part; shares its variables with the whole classifier
    train_inputs, val_inputs : batches of positions → what enters the tail
    train_labels, val_labels : (n,) uint8 of 0 and 1
    auroc : labels, logits → area under the ROC curve
    jit_compile : whether the step is compiled with XLA
    """

    name: str
    tail: "keras.Model"
    train_inputs: Inputs
    val_inputs: Inputs
    train_labels: NDArray[np.uint8]
    val_labels: NDArray[np.uint8]
    weights: ClassWeights
    params: TrainParams
    auroc: Score
    jit_compile: bool


@dataclass(frozen=True)
class Epoch:
    """What one epoch did.

    ``loss`` is the class-weighted training loss averaged over the epoch, ``val_loss`` the plain
    log loss on val after it, ``learning_rate`` the rate of its last step.
    """

    epoch: int
    loss: float
    val_loss: float
    val_auroc: float
    learning_rate: float
    epoch_s: float


@dataclass(frozen=True)
class Fit:
    """A finished phase; the tail holds the weights of ``best_epoch``."""

    history: list[Epoch]
    best_epoch: int
    stopped_early: bool
    wall_s: float

    def as_dict(self) -> dict[str, Any]:
        """For ``fit.json``."""
        return asdict(self)


def fit(
    phase: Phase, *, checkpoint: Checkpoint, on_epoch: Callable[[Epoch], None], log: Logger
) -> Fit:
    """Train until the epochs are used up or patience is; leave the best epoch's weights in place.

    After every epoch the whole state is written to ``checkpoint``; a phase that was interrupted
    goes on after its last whole epoch with the same result as if nothing had happened.

    Raises
    ------
    TrainingDiverged
        The loss became NaN or infinite; names the epoch.
    """
    run = _Run(phase, log)
    history = run.restore(checkpoint)
    for epoch in history:
        on_epoch(epoch)
    while len(history) < phase.params.epochs and not run.patience.exhausted:
        epoch = run.epoch(len(history) + 1)
        history.append(epoch)
        run.save(checkpoint, history)
        on_epoch(epoch)
    phase.tail.set_weights(run.best_weights)
    return Fit(
        history=history,
        best_epoch=run.patience.best_epoch,
        stopped_early=len(history) < phase.params.epochs,
        wall_s=sum(epoch.epoch_s for epoch in history),
    )


class _Run:
    """The moving parts of one phase."""

    def __init__(self, phase: Phase, log: Logger) -> None:
        self.phase = phase
        self.log = log
        self.steps_per_epoch = n_batches(len(phase.train_labels), phase.params.batch_size)
        self.step = TailStep(phase.tail, phase.params, jit_compile=phase.jit_compile)
        self.schedule: Schedule = make_schedule(
            phase.params.schedule,
            peak=phase.params.learning_rate,
            steps_per_epoch=self.steps_per_epoch,
            epochs=phase.params.epochs,
        )
        self.patience = Patience(phase.params.early_stopping)
        self.best_weights: list[NDArray[np.float32]] = phase.tail.get_weights()

    def epoch(self, number: int) -> Epoch:
        started = time.monotonic()
        loss, rate = self._train(number)
        logits = self._val_logits()
        val_loss = _log_loss(self.phase.val_labels, logits)
        _check(val_loss, self.phase, number, "val loss")
        epoch = Epoch(
            epoch=number,
            loss=loss,
            val_loss=val_loss,
            val_auroc=self.phase.auroc(self.phase.val_labels, logits),
            learning_rate=rate,
            epoch_s=time.monotonic() - started,
        )
        is_best = self.patience.observe(number, asdict(epoch))
        if is_best:
            self.best_weights = self.phase.tail.get_weights()
        self.schedule.after_epoch(val_loss)
        self._report(epoch, is_best=is_best)
        return epoch

    def _train(self, number: int) -> tuple[float, float]:
        phase, params = self.phase, self.phase.params
        n = len(phase.train_labels)
        labels = phase.train_labels.astype(np.float32)
        weights = phase.weights.per_patch(phase.train_labels)
        batches = training_batches(
            n,
            batch_size=params.batch_size,
            n_views=params.views,
            seed=params.seed,
            epoch=number,
        )
        rate = total = 0.0
        with progress(f"epoch {number}/{params.epochs}", n, "patches", self.log) as advance:
            for index, batch in enumerate(batches):
                rate = self.schedule.rate((number - 1) * self.steps_per_epoch + index)
                self.step.set_rate(rate)
                loss = self.step.train(
                    phase.train_inputs(batch),
                    labels[batch.positions],
                    weights[batch.positions],
                    batch.counted,
                )
                total += float(loss) * batch.n_counted
                if index % _CHECK_LOSS_EVERY == 0:
                    _check(total, phase, number, "loss")
                advance(batch.n_counted)
        _check(total, phase, number, "loss")
        return total / n, rate

    def _val_logits(self) -> NDArray[np.float64]:
        n = len(self.phase.val_labels)
        logits = np.empty(n)
        for batch in ordered_batches(n, batch_size=self.phase.params.batch_size):
            values = self.step.forward(self.phase.val_inputs(batch)).numpy()
            logits[batch.positions[: batch.n_counted]] = values[: batch.n_counted]
        return logits

    def _report(self, epoch: Epoch, *, is_best: bool) -> None:
        left = self.phase.params.epochs - epoch.epoch
        self.log.info(
            f"epoch {epoch.epoch}/{self.phase.params.epochs}: loss {epoch.loss:.4f}, "
            f"val loss {epoch.val_loss:.4f}, val AUROC {epoch.val_auroc:.4f}"
            f"{' (best)' if is_best else ''}, rate {epoch.learning_rate:.1e}, "
            f"{len(self.phase.train_labels) / epoch.epoch_s:,.0f} patches/s, "
            f"at most {left * epoch.epoch_s:,.0f} s left"
        )

    def save(self, checkpoint: Checkpoint, history: list[Epoch]) -> None:
        patience = self.patience
        checkpoint.save(
            arrays={
                "variables": [v.numpy() for v in self.phase.tail.variables],
                "optimizer": [v.numpy() for v in self.step.optimizer.variables],
                "best": self.best_weights,
            },
            facts={
                "history": [asdict(epoch) for epoch in history],
                "schedule": self.schedule.state(),
                "patience": {
                    "best_epoch": patience.best_epoch,
                    "best": patience.best,
                    "reference": patience.reference,
                    "epochs_waited": patience.epochs_waited,
                },
            },
        )

    def restore(self, checkpoint: Checkpoint) -> list[Epoch]:
        saved = checkpoint.load()
        if saved is None:
            return []
        arrays, facts = saved
        for variable, value in zip(self.phase.tail.variables, arrays["variables"], strict=True):
            variable.assign(value)
        for variable, value in zip(self.step.optimizer.variables, arrays["optimizer"], strict=True):
            variable.assign(value)
        self.best_weights = arrays["best"]
        self.schedule.restore(facts["schedule"])
        self.patience = Patience(self.phase.params.early_stopping, **facts["patience"])
        history = [Epoch(**epoch) for epoch in facts["history"]]
        self.log.info(f"goes on after epoch {len(history)}, where it was interrupted")
        return history


def _log_loss(labels: NDArray[np.uint8], logits: NDArray[np.float64]) -> float:
    """Mean of -log p(label), from logits: log(1 + e^z) - y z, without overflow."""
    return float(np.mean(np.logaddexp(0.0, logits) - labels * logits))


def _check(value: float, phase: Phase, epoch: int, name: str) -> None:
    if not np.isfinite(value):
        raise TrainingDiverged(
            f"{phase.name}: {name} is {value} in epoch {epoch}; "
            f"lower {phase.name}.learning_rate (got {phase.params.learning_rate:g})"
        )
