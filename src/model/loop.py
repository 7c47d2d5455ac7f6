"""The training loop of one phase: epochs, validation, schedule, early stopping, checkpoints."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from logging import Logger
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from src.data.batches import (
    Batch,
    epoch_views,
    n_batches,
    ordered_batches,
    training_batches,
)
from src.model.checkpoint import Checkpoint
from src.model.class_weights import ClassWeights
from src.model.inputs import Inputs
from src.model.replicas import ReplicatedStep
from src.model.schedules import Schedule, make_schedule
from src.model.step import TailStep
from src.model.stopping import Patience
from src.params import TrainParams
from src.system.durable import DiskFull
from src.system.errors import ProjectError
from src.system.progress import progress

if TYPE_CHECKING:
    import keras

Score = Callable[[NDArray[np.uint8], NDArray[np.float64]], float]
_LOSSES_READ_EVERY = 20  # steps; reading one waits for the step
MOST_MEASURED = 200  # batches that statistics of averaged weights come from


class TrainingDiverged(ProjectError):
    """The loss is no longer a number."""


@dataclass(frozen=True)
class Phase:
    """Everything one phase of training works on.

    Attributes
    ----------
    name : ``train`` or ``finetune``
    tail : the trained part; shares its variables with the whole classifier
    step : its compiled training step
    train_inputs, val_inputs : batches of positions → what enters the tail
    train_labels, val_labels : (n,) uint8 of 0 and 1
    auroc : labels, logits → area under the ROC curve
    random_state : variables of what is random before the tail (augmentation)
    checkpoint_s : seconds between checkpoints within an epoch
    free_disk : gives back disk that others need more, when a checkpoint doesn't fit
    """

    name: str
    tail: "keras.Model"
    step: TailStep | ReplicatedStep
    train_inputs: Inputs
    val_inputs: Inputs
    train_labels: NDArray[np.uint8]
    val_labels: NDArray[np.uint8]
    weights: ClassWeights
    params: TrainParams
    auroc: Score
    random_state: "Sequence[keras.Variable]" = ()
    checkpoint_s: float = float("inf")
    free_disk: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class Epoch:
    """What one epoch did.

    ``loss`` is the class-weighted training loss averaged over the epoch, ``val_loss`` the plain
    log loss on val after it, ``learning_rate`` the rate of its last step. ``epoch_s``, the time it
    took, is all that may differ between two runs of the same work.
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

    def as_dict(self) -> dict[str, Any]:
        """For ``fit.json``: the same from every run of the same work, so without times."""
        history = [
            {name: value for name, value in asdict(epoch).items() if name != "epoch_s"}
            for epoch in self.history
        ]
        return {
            "history": history,
            "best_epoch": self.best_epoch,
            "stopped_early": self.stopped_early,
        }

    def timing(self) -> dict[str, Any]:
        """For ``timing.json``: seconds of each epoch and of all."""
        epoch_s = [epoch.epoch_s for epoch in self.history]
        return {"epoch_s": epoch_s, "wall_s": sum(epoch_s)}


def fit(
    phase: Phase, *, checkpoint: Checkpoint, on_epoch: Callable[[Epoch], None], log: Logger
) -> Fit:
    """Train until the epochs are used up or patience is; leave the best epoch's weights in place.

    After every epoch, and every ``checkpoint_s`` within one, the whole state is written to
    ``checkpoint``: a phase that is killed goes on from there, with the same result as if nothing
    had happened. ``on_epoch`` hears of all epochs, also of those before an interruption. What is
    left in ``checkpoint`` is the result; a finished phase is not trained again.

    Raises
    ------
    TrainingDiverged
        The loss became NaN or infinite; names the epoch.
    DiskFull
        A checkpoint doesn't fit, even without the activations; the one before is whole.
    """
    run = Training(phase, checkpoint, log)
    run.restore()
    for epoch in run.history:
        on_epoch(epoch)
    while not run.is_finished:
        on_epoch(run.epoch())
    run.keep_best()
    return Fit(
        history=run.history,
        best_epoch=run.patience.best_epoch,
        stopped_early=len(run.history) < phase.params.epochs,
    )


@dataclass
class _Begun:
    """An epoch in progress: steps done, their summed loss, seconds spent."""

    steps: int = 0
    loss: float = 0.0
    seconds: float = 0.0


class Training:
    """The moving parts of one phase; :func:`fit` runs it."""

    def __init__(self, phase: Phase, checkpoint: Checkpoint, log: Logger) -> None:
        self.phase = phase
        self.checkpoint = checkpoint
        self.log = log
        self.history: list[Epoch] = []
        self.begun = _Begun()
        self.steps_per_epoch = n_batches(len(phase.train_labels), phase.params.batch_size)
        self.schedule: Schedule = make_schedule(
            phase.params.schedule,
            peak=phase.params.learning_rate,
            steps_per_epoch=self.steps_per_epoch,
            epochs=phase.params.epochs,
        )
        self.patience = Patience(phase.params.early_stopping)
        self.best_weights: list[NDArray[np.float32]] = []
        self._labels = phase.train_labels.astype(np.float32)
        self._patch_weights = phase.weights.per_patch(phase.train_labels)

    @property
    def is_finished(self) -> bool:
        return len(self.history) == self.phase.params.epochs or self.patience.exhausted

    def epoch(self) -> Epoch:
        """Train for (the rest of) an epoch, validate, decide, and write the state."""
        number = len(self.history) + 1
        started = time.monotonic() - self.begun.seconds
        loss, rate = self.train_epoch(number, started)
        with self.phase.step.averaged(self._first_inputs(number)):
            epoch = self._validated(number, loss, rate, started)
            is_best = self.patience.observe(number, asdict(epoch))
            if is_best:
                self.best_weights = self.phase.tail.get_weights()
        self.schedule.after_epoch(epoch.val_loss)
        self.history.append(epoch)
        self._save()
        self._report(epoch, is_best=is_best)
        return epoch

    def _first_inputs(self, number: int) -> Iterator[Any]:
        """What entered the tail in the first steps of an epoch; augmented, in other colours."""
        params = self.phase.params
        order = {"n_views": params.views, "seed": params.seed, "epoch": number}
        n = len(self.phase.train_labels)
        batches = training_batches(n, batch_size=params.batch_size, **order)
        return map(self.phase.train_inputs, islice(batches, MOST_MEASURED))

    def _validated(self, number: int, loss: float, rate: float, started: float) -> Epoch:
        logits = self._val_logits()
        val_loss = _log_loss(self.phase.val_labels, logits)
        _check(val_loss, self.phase, number, "val loss")
        return Epoch(
            epoch=number,
            loss=loss,
            val_loss=val_loss,
            val_auroc=self.phase.auroc(self.phase.val_labels, logits),
            learning_rate=rate,
            epoch_s=time.monotonic() - started,
        )

    def train_epoch(self, number: int, started: float) -> tuple[float, float]:
        """The (rest of the) steps of an epoch, counted from 1; mean loss, and the last rate."""
        phase, params = self.phase, self.phase.params
        n, first = len(phase.train_labels), self.begun.steps
        order = {"n_views": params.views, "seed": params.seed, "epoch": number}
        phase.train_inputs.prepare(epoch_views(n, **order))
        batches = training_batches(n, batch_size=params.batch_size, **order)
        first_step = (number - 1) * self.steps_per_epoch
        saved: float = time.monotonic()
        unread: list[tuple[Any, int]] = []
        with progress(f"epoch {number}/{params.epochs}", n, "patches", self.log) as advance:
            advance(min(n, first * params.batch_size))
            for index, batch in enumerate(islice(batches, first, None), start=first):
                loss = self._step(batch, self.schedule.rate(first_step + index))
                unread.append((loss, batch.n_counted))
                is_due = time.monotonic() - saved >= phase.checkpoint_s
                if is_due or len(unread) == _LOSSES_READ_EVERY:
                    self._read(unread, number)
                if is_due:
                    self.begun.seconds = time.monotonic() - started
                    self._save()
                    saved = time.monotonic()
                advance(batch.n_counted)
        self._read(unread, number)
        loss, self.begun = self.begun.loss / n, _Begun()
        return loss, self.schedule.rate(first_step + self.steps_per_epoch - 1)

    def _step(self, batch: Batch, rate: float) -> Any:
        step = self.phase.step
        step.set_rate(rate)
        return step.train(
            self.phase.train_inputs(batch),
            self._labels[batch.positions],
            self._patch_weights[batch.positions],
            batch.counted,
        )

    def _read(self, unread: list[tuple[Any, int]], number: int) -> None:
        """Add the losses of the last steps, in their order, and refuse what is no number."""
        for loss, n_counted in unread:
            self.begun.loss += float(loss) * n_counted
        self.begun.steps += len(unread)
        unread.clear()
        _check(self.begun.loss, self.phase, number, "loss")

    def _val_logits(self) -> NDArray[np.float64]:
        n = len(self.phase.val_labels)
        logits = np.empty(n)
        self.phase.val_inputs.prepare(np.zeros(n, np.int64))
        for batch in ordered_batches(n, batch_size=self.phase.params.batch_size):
            values = self.phase.step.forward(self.phase.val_inputs(batch)).numpy()
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

    def keep_best(self) -> None:
        """Put the best epoch's weights in place; all else of the state is no longer needed."""
        self.phase.tail.set_weights(self.best_weights)
        self._write(lambda: {"best": self.best_weights})

    def _save(self) -> None:
        self._write(
            lambda: {
                "state": (variable.numpy() for variable in self._state()),
                "best": self.best_weights,
            }
        )

    def _write(self, arrays: Callable[[], Mapping[str, Iterable[NDArray[Any]]]]) -> None:
        """Save; where the disk is full, once more without the activations on it."""
        try:
            self.checkpoint.save(arrays=arrays(), facts=self._facts())
        except DiskFull:
            self.log.warning("a checkpoint doesn't fit on the disk: activations give way")
            self.phase.free_disk()
            self.checkpoint.save(arrays=arrays(), facts=self._facts())

    def _state(self) -> "list[keras.Variable]":
        """Every variable that a step reads or changes, in a fixed order."""
        return [*self.phase.tail.variables, *self.phase.step.variables, *self.phase.random_state]

    def _facts(self) -> dict[str, Any]:
        return {
            "history": [asdict(epoch) for epoch in self.history],
            "begun": asdict(self.begun),
            "schedule": self.schedule.state(),
            "patience": self.patience.state(),
        }

    def restore(self) -> None:
        """Take back the state of an interrupted phase, where there is one."""
        saved = self.checkpoint.load()
        if saved is None:
            return
        arrays, facts = saved
        self.history = [Epoch(**epoch) for epoch in facts["history"]]
        self.begun = _Begun(**facts["begun"])
        self.schedule.restore(facts["schedule"])
        self.patience = Patience(self.phase.params.early_stopping, **facts["patience"])
        self.best_weights = arrays["best"]
        if self.is_finished:
            self.log.info("was finished before: its result is taken; --fresh trains anew")
            return
        for variable, value in zip(self._state(), arrays["state"], strict=True):
            variable.assign(value)
        self.log.info(
            f"goes on in epoch {len(self.history) + 1} after {self.begun.steps} of "
            f"{self.steps_per_epoch} steps, where it was interrupted"
        )


def _log_loss(labels: NDArray[np.uint8], logits: NDArray[np.float64]) -> float:
    """Mean of -log p(label), from logits: log(1 + e^z) - y z, without overflow."""
    return float(np.mean(np.logaddexp(0.0, logits) - labels * logits))


def _check(value: float, phase: Phase, epoch: int, name: str) -> None:
    if not np.isfinite(value):
        raise TrainingDiverged(
            f"{phase.name}: {name} is {value} in epoch {epoch}; "
            f"lower {phase.name}.learning_rate (got {phase.params.learning_rate:g})"
        )
