"""One phase of training, from a model and its patches to the fitted model: :func:`fit_phase`.

``train`` fits the head on pooled features of the frozen backbone; ``finetune`` fits the top blocks
too. Stages and the trials of a search call the same function.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from logging import Logger
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from src import params as settings
from src.data.augmentation import build_augmentation
from src.data.batches import (
    VIEW_BLOCK,
    Batch,
    epoch_views,
    n_batches,
    ordered_batches,
    training_batches,
)
from src.data.dataset import LabelledPatches, dataset_identity, split_kind
from src.model.activations import FrozenLayers, Inputs
from src.model.checkpoint import Checkpoint, recorded_params, work_identity, work_key
from src.model.classifier import FEATURE_SCALE, BatchNormMode, cut, unfreeze
from src.model.inference import MODEL_FILE, save_model
from src.model.schedules import Patience, make_schedule
from src.model.step import ReplicatedStep, TailStep, in_replicas, step_ways, stepping
from src.model.weights import weights_sha256
from src.params import FinetuneParams, Params, TrainParams
from src.system.determinism import Environment
from src.system.durable import DiskFull, replacing_folder, write_json
from src.system.errors import ProjectError
from src.system.progress import progress

Stage = Literal["train", "finetune"]

FIT_FILE, TIMING_FILE, RUN_FILE = "fit.json", "timing.json", "run.json"

MOST_MEASURED = 200  # batches that statistics of averaged weights come from
_LOSSES_READ_EVERY = 20  # steps; reading one waits for the step


class OneClassOnly(ProjectError):
    """Training and its scores need patches of both classes."""


class TrainingDiverged(ProjectError):
    """The loss is no longer a number."""


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
class Fitted:
    """What a phase leaves.

    Attributes
    ----------
    facts : for ``fit.json``, the same from every run of the same work
    timing : for ``timing.json``, seconds of each epoch and of all
    """

    facts: dict[str, Any]
    timing: dict[str, Any]

    @property
    def summary(self) -> str:
        """The best epoch and the time, for the log."""
        history, best_epoch = self.facts["history"], self.facts["best_epoch"]
        best = history[best_epoch - 1]
        return (
            f"best epoch {best_epoch} of {len(history)}: val AUROC {best['val_auroc']:.4f}, "
            f"val loss {best['val_loss']:.4f}; {self.timing['wall_s']:,.0f} s"
        )


def fit_phase(
    model: keras.Model,
    train: LabelledPatches,
    val: LabelledPatches,
    params: Params,
    stage: Stage,
    *,
    environment: Environment,
    checkpoint: Checkpoint | None,
    on_epoch: Callable[[Epoch], None],
    log: Logger,
    depths: Iterable[int] = (),
) -> Fitted:
    """Train ``model`` in place until the epochs or the patience are used up; keep the best epoch.

    After every epoch, and every ``runtime.checkpoint_minutes`` within one, the whole state goes to
    ``checkpoint``: a phase that is killed goes on from there, with the same result as if nothing
    had happened. What is left there is the result; a finished phase is not trained again. None
    keeps no state: a trial that is killed is run again from its start.

    ``on_epoch`` hears of every epoch, also of those before an interruption; what it raises ends
    the phase. ``depths`` are cuts whose activations other trials will need: where patches go
    through frozen layers for this phase, those are kept too.

    Raises
    ------
    TrainingDiverged
        The loss became NaN or infinite; names the epoch.
    ActivationsOverflow
        Activations of the frozen layers don't fit ``cache.dtype``.
    DiskFull
        A checkpoint doesn't fit, even without the activations; the one before is whole.
    """
    initial_sha256 = weights_sha256(model)
    section = section_of(params, stage)
    n_gpus = int(environment["gpus"])
    depth = section.depth if isinstance(section, FinetuneParams) else 0
    how = step_ways(params.runtime, backbone=params.model.backbone, depth=depth, n_gpus=n_gpus)
    training = start_training(
        model,
        train,
        val,
        params,
        stage,
        how=how,
        environment=environment,
        checkpoint=checkpoint,
        # on a GPU passes for one depth and for several needn't give the same bits
        depths=() if n_gpus else depths,
        log=log,
    )
    with stepping(training.tail, how):
        training.fit(on_epoch)
    history = [asdict(epoch) for epoch in training.history]
    epoch_s = [epoch.pop("epoch_s") for epoch in history]
    facts = {
        "stage": stage,
        "history": history,
        "best_epoch": training.patience.best_epoch,
        "stopped_early": len(history) < section.epochs,
        "class_weights": training.class_weights,
        "schedule": section.schedule.model_dump(),
        "n_train": len(train),
        "n_val": len(val),
        "initial_weights_sha256": initial_sha256,
        "final_weights_sha256": weights_sha256(model),
        "trainable_parameters": sum(int(np.prod(v.shape)) for v in model.trainable_variables),
        "total_parameters": int(model.count_params()),
        "environment": {**environment, **how},
    }
    return Fitted(facts, {"epoch_s": epoch_s, "wall_s": sum(epoch_s)})


def describe_phase(
    model: keras.Model,
    train: LabelledPatches,
    val: LabelledPatches,
    params: Params,
    stage: Stage,
    environment: Environment,
    log: Logger,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What is known of a phase before it starts: for its run's record, and its work's identity."""
    section = section_of(params, stage)
    dataset, split = dataset_identity(train, val), split_kind()
    initial_sha256 = weights_sha256(model)
    weights = class_weights(train.labels, section.class_weights)
    log.info(
        f"{len(train):,} patches, {100 * train.labels.mean():.1f} % tumour; class weights "
        f"normal {weights['normal']:.3f}, tumour {weights['tumour']:.3f}"
    )
    if not split.slide_disjoint:
        log.warning(f"val scores are optimistic: groups are {split.groups_are}, not slides")
    identity = work_identity(
        params, stage, dataset=dataset, initial_sha256=initial_sha256, environment=environment
    )
    record = {
        "stage": stage,
        "params": recorded_params(params, stage),
        "dataset": dataset,
        "class_weights": weights,
        "schedule": section.schedule.model_dump(),
        "initial_weights_sha256": initial_sha256,
        "slide_disjoint": split.slide_disjoint,
        "groups_are": split.groups_are,
        "work_key": work_key(identity),
    }
    return record, identity


def section_of(params: Params, stage: Stage) -> TrainParams:
    """The section of ``params.yaml`` that has the stage's name."""
    return params.train if stage == "train" else params.finetune


def start_training(
    model: keras.Model,
    train: LabelledPatches,
    val: LabelledPatches,
    params: Params,
    stage: Stage,
    *,
    how: Mapping[str, bool],
    environment: Environment,
    checkpoint: Checkpoint | None,
    depths: Iterable[int] = (),
    log: Logger,
) -> Training:
    """``model`` cut and frozen, with its inputs and its step, ready to be fitted.

    ``how`` is what :func:`src.model.step.step_ways` chose. ``train`` gives the head
    the mean and variance of its features on the way.
    """
    section, backbone = section_of(params, stage), params.model.backbone
    depth, augment = 0, None
    batch_norm: BatchNormMode = "frozen"
    if isinstance(section, FinetuneParams):
        depth, batch_norm, augment = section.depth, section.batch_norm, section.augment
    unfreeze(model, backbone=backbone, depth=depth, batch_norm=batch_norm)
    _, tail = cut(model, backbone=backbone, depth=depth)
    frozen = FrozenLayers(
        model,
        model=params.model,
        depth=depth,
        cache=params.cache,
        environment=environment,
        depths=depths,
        log=log,
    )
    val_inputs = frozen.inputs(val, views=1)  # first: it is small, and met in every epoch
    augmentation = build_augmentation(augment, seed=section.seed)
    if augmentation is None:
        train_inputs = frozen.inputs(train, views=section.views)
    else:
        train_inputs = frozen.augmented(train, augmentation)
    if stage == "train":
        _standardise_features(model, train_inputs, len(train))
    how = step_ways(params.runtime, backbone=backbone, depth=depth, n_gpus=int(environment["gpus"]))
    step = TailStep(
        tail, section, backbone=backbone, jit_compile=how["xla"], jit_update=how["xla_update"]
    )
    return Training(
        stage,
        section,
        tail,
        in_replicas(step, section.batch_size),
        train_inputs,
        val_inputs,
        train.labels,
        val.labels,
        checkpoint=checkpoint,
        checkpoint_s=60 * params.runtime.checkpoint_minutes,
        random_state=[] if augmentation is None else augmentation.variables,
        free_disk=frozen.give_way,
        log=log,
    )


def save_phase(
    folder: Path,
    model: keras.Model,
    fitted: Fitted,
    *,
    run: Mapping[str, Any],
) -> None:
    """Write a model folder whole or not at all."""
    with replacing_folder(folder) as temporary:
        save_model(model, temporary / MODEL_FILE)
        write_json(temporary / FIT_FILE, fitted.facts)
        write_json(temporary / TIMING_FILE, fitted.timing)
        write_json(temporary / RUN_FILE, dict(run))


class Training:
    """The moving parts of one phase; :func:`fit_phase` drives it.

    Attributes
    ----------
    tail : the trained part; shares its variables with the whole classifier
    step : its compiled training step
    train_inputs, val_inputs : batches of positions → what enters the tail
    train_labels, val_labels : (n,) uint8 of 0 and 1
    random_state : variables of what is random before the tail (augmentation)
    checkpoint_s : seconds between checkpoints within an epoch
    free_disk : gives back the disk that activations take, when a checkpoint doesn't fit
    """

    def __init__(
        self,
        stage: str,
        params: TrainParams,
        tail: keras.Model,
        step: TailStep | ReplicatedStep,
        train_inputs: Inputs,
        val_inputs: Inputs,
        train_labels: NDArray[np.uint8],
        val_labels: NDArray[np.uint8],
        *,
        checkpoint: Checkpoint | None,
        log: Logger,
        checkpoint_s: float = float("inf"),
        random_state: list[keras.Variable] | None = None,
        free_disk: Callable[[], None] = lambda: None,
    ) -> None:
        self.stage, self.params = stage, params
        self.tail, self.step = tail, step
        self.train_inputs, self.val_inputs = train_inputs, val_inputs
        self.val_labels = val_labels
        self.checkpoint, self.checkpoint_s, self.log = checkpoint, checkpoint_s, log
        self.free_disk = free_disk
        self.n = len(train_labels)
        self.class_weights = class_weights(train_labels, params.class_weights)
        self.labels = train_labels.astype(np.float32)
        normal, tumour = self.class_weights["normal"], self.class_weights["tumour"]
        self.patch_weights = np.where(train_labels == 1, tumour, normal).astype(np.float32)
        self.steps_per_epoch = n_batches(self.n, params.batch_size)
        self.schedule = make_schedule(
            params.schedule,
            peak=params.learning_rate,
            steps_per_epoch=self.steps_per_epoch,
            epochs=params.epochs,
        )
        self.patience = Patience(params.early_stopping)
        self.history: list[Epoch] = []
        # the epoch in progress: steps done, their summed loss, seconds spent
        self.steps_done, self.loss_sum, self.seconds = 0, 0.0, 0.0
        self.best_weights: list[NDArray[np.float32]] = []
        # every variable that a step reads or changes, in a fixed order
        self.state = [*tail.variables, *step.variables, *(random_state or [])]

    def fit(self, on_epoch: Callable[[Epoch], None]) -> None:
        """Go on from the checkpoint, where there is one, to the end; keep the best epoch."""
        self._restore()
        for epoch in self.history:
            on_epoch(epoch)
        while not self.is_finished:
            on_epoch(self.epoch())
        self.tail.set_weights(self.best_weights)
        self._write(lambda: {"best": self.best_weights})  # the result: all that is still needed

    @property
    def is_finished(self) -> bool:
        return len(self.history) == self.params.epochs or self.patience.exhausted

    def epoch(self) -> Epoch:
        """Train for (the rest of) an epoch, validate, decide, and write the state."""
        number = len(self.history) + 1
        started = time.monotonic() - self.seconds
        loss, rate = self.train_epoch(number, started)
        # what entered the tail in the first steps of the epoch; augmented, in other colours
        first = map(self.train_inputs, islice(self._batches(number), MOST_MEASURED))
        with self.step.averaged(first):
            logits = self._val_logits()
            val_loss = _log_loss(self.val_labels, logits)
            self._check(val_loss, number, "val loss")
            epoch = Epoch(
                epoch=number,
                loss=loss,
                val_loss=val_loss,
                val_auroc=_auroc(self.val_labels, logits),
                learning_rate=rate,
                epoch_s=time.monotonic() - started,
            )
            is_best = self.patience.observe(number, asdict(epoch))
            if is_best:
                self.best_weights = self.tail.get_weights()
        self.schedule.after_epoch(epoch.val_loss)
        self.history.append(epoch)
        self._save()
        left = self.params.epochs - number
        self.log.info(
            f"epoch {number}/{self.params.epochs}: loss {epoch.loss:.4f}, "
            f"val loss {epoch.val_loss:.4f}, val AUROC {epoch.val_auroc:.4f}"
            f"{' (best)' if is_best else ''}, rate {epoch.learning_rate:.1e}, "
            f"{self.n / epoch.epoch_s:,.0f} patches/s, "
            f"at most {left * epoch.epoch_s:,.0f} s left"
        )
        return epoch

    def train_epoch(self, number: int, started: float) -> tuple[float, float]:
        """The (rest of the) steps of an epoch, counted from 1; mean loss, and the last rate."""
        params, first = self.params, self.steps_done
        self.train_inputs.prepare(
            epoch_views(self.n, n_views=params.views, seed=params.seed, epoch=number)
        )
        first_step = (number - 1) * self.steps_per_epoch
        saved = time.monotonic()
        unread: list[tuple[Any, int]] = []
        with progress(f"epoch {number}/{params.epochs}", self.n, "patches", self.log) as advance:
            advance(min(self.n, first * params.batch_size))
            for index, batch in enumerate(islice(self._batches(number), first, None), start=first):
                loss = self._step(batch, self.schedule.rate(first_step + index))
                unread.append((loss, batch.n_counted))
                is_due = time.monotonic() - saved >= self.checkpoint_s
                if is_due or len(unread) == _LOSSES_READ_EVERY:
                    self._read(unread, number)
                if is_due:
                    self.seconds = time.monotonic() - started
                    self._save()
                    saved = time.monotonic()
                advance(batch.n_counted)
        self._read(unread, number)
        mean_loss = self.loss_sum / self.n
        self.steps_done, self.loss_sum, self.seconds = 0, 0.0, 0.0
        return mean_loss, self.schedule.rate(first_step + self.steps_per_epoch - 1)

    def _batches(self, number: int) -> Iterator[Batch]:
        return training_batches(
            self.n,
            batch_size=self.params.batch_size,
            n_views=self.params.views,
            seed=self.params.seed,
            epoch=number,
        )

    def _step(self, batch: Batch, rate: float) -> Any:
        self.step.set_rate(rate)
        return self.step.train(
            self.train_inputs(batch),
            self.labels[batch.positions],
            self.patch_weights[batch.positions],
            batch.counted,
        )

    def _read(self, unread: list[tuple[Any, int]], number: int) -> None:
        """Add the losses of the last steps, in their order, and refuse what is no number."""
        for loss, n_counted in unread:
            self.loss_sum += float(loss) * n_counted
        self.steps_done += len(unread)
        unread.clear()
        self._check(self.loss_sum, number, "loss")

    def _check(self, value: float, epoch: int, name: str) -> None:
        if not np.isfinite(value):
            raise TrainingDiverged(
                f"{self.stage}: {name} is {value} in epoch {epoch}; "
                f"lower {self.stage}.learning_rate (got {self.params.learning_rate:g})"
            )

    def _val_logits(self) -> NDArray[np.float64]:
        n = len(self.val_labels)
        logits = np.empty(n)
        self.val_inputs.prepare(np.zeros(n, np.int64))
        for batch in ordered_batches(n, batch_size=self.params.batch_size):
            values = self.step.forward(self.val_inputs(batch)).numpy()
            logits[batch.positions[: batch.n_counted]] = values[: batch.n_counted]
        return logits

    def _save(self) -> None:
        self._write(
            lambda: {
                "state": (variable.numpy() for variable in self.state),
                "best": self.best_weights,
            }
        )

    def _write(self, arrays: Callable[[], Mapping[str, Iterable[NDArray[Any]]]]) -> None:
        """Save; where the disk is full, once more without the activations on it."""
        if self.checkpoint is None:
            return
        facts = {
            "history": [asdict(epoch) for epoch in self.history],
            "begun": [self.steps_done, self.loss_sum, self.seconds],
            "schedule": self.schedule.state(),
            "patience": self.patience.state(),
        }
        try:
            self.checkpoint.save(arrays=arrays(), facts=facts)
        except DiskFull:
            self.log.warning("a checkpoint doesn't fit on the disk: activations give way")
            self.free_disk()
            self.checkpoint.save(arrays=arrays(), facts=facts)

    def _restore(self) -> None:
        """Take back the state of an interrupted phase, where there is one."""
        saved = self.checkpoint.load() if self.checkpoint is not None else None
        if saved is None:
            return
        arrays, facts = saved
        self.history = [Epoch(**epoch) for epoch in facts["history"]]
        self.steps_done, self.loss_sum, self.seconds = facts["begun"]
        self.schedule.restore(facts["schedule"])
        self.patience = Patience(self.params.early_stopping, **facts["patience"])
        self.best_weights = arrays["best"]
        if self.is_finished:
            self.log.info("was finished before: its result is taken; --fresh trains anew")
            return
        for variable, value in zip(self.state, arrays["state"], strict=True):
            variable.assign(value)
        self.log.info(
            f"goes on in epoch {len(self.history) + 1} after {self.steps_done} of "
            f"{self.steps_per_epoch} steps, where it was interrupted"
        )


def class_weights(
    labels: NDArray[np.uint8], setting: Literal["balanced", "none"] | settings.ClassWeights
) -> dict[str, float]:
    """Factors of ``normal`` and ``tumour`` patches in the training loss, against imbalance.

    ``balanced`` is n / (2 · n_class), as in scikit-learn: 60 normal, 40 tumour give 0.833, 1.25.
    ``none`` gives 1 and 1. Balanced weights average to 1 over the patches, so the learning rate
    keeps its meaning.

    Raises
    ------
    OneClassOnly
        Balanced weights need patches of both classes.
    """
    if setting == "none":
        return {"normal": 1.0, "tumour": 1.0}
    if isinstance(setting, settings.ClassWeights):
        return {"normal": setting.normal, "tumour": setting.tumour}
    n = len(labels)
    n_tumour = int(np.count_nonzero(labels))
    if n_tumour in (0, n):
        raise OneClassOnly(
            f"balanced class weights need both classes (got {n - n_tumour:,} normal, "
            f"{n_tumour:,} tumour in train); check the split"
        )
    return {"normal": n / (2 * (n - n_tumour)), "tumour": n / (2 * n_tumour)}


def _standardise_features(model: keras.Model, inputs: Inputs, n: int) -> None:
    """Give the head the mean and variance of the ``n`` patches' pooled features as they are.

    ``inputs`` gives features (batch, n_features); view 0 alone is met.
    """
    inputs.prepare(np.zeros(n, np.int64))
    total = squares = np.float64(0.0)
    for batch in ordered_batches(n, batch_size=VIEW_BLOCK):
        features = np.asarray(inputs(batch))[: batch.n_counted].astype(np.float64)
        total = total + features.sum(axis=0)
        squares = squares + np.square(features).sum(axis=0)
    mean = total / n
    variance = np.maximum(squares / n - np.square(mean), 0.0)
    model.get_layer(FEATURE_SCALE).set_weights([mean, variance])


def _log_loss(labels: NDArray[np.uint8], logits: NDArray[np.float64]) -> float:
    """Mean of -log p(label), from logits: log(1 + e^z) - y z, without overflow."""
    return float(np.mean(np.logaddexp(0.0, logits) - labels * logits))


def _auroc(labels: NDArray[np.uint8], logits: NDArray[np.float64]) -> float:
    """Chance that a tumour patch scores above a normal one, ties counting half (Mann-Whitney)."""
    n_tumour = int(np.count_nonzero(labels))
    n_normal = len(labels) - n_tumour
    if not n_tumour or not n_normal:
        raise OneClassOnly(
            f"val AUROC needs both classes (got {n_normal:,} normal, {n_tumour:,} tumour in val); "
            "check the split"
        )
    # ranks of tumour among all, less those among themselves: pairs it wins
    won = rankdata(logits)[labels == 1].sum() - n_tumour * (n_tumour + 1) / 2
    return float(won / (n_tumour * n_normal))
