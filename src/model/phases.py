"""The two phases of training, from a model and its patches to the fitted model and ``fit.json``.

``train`` fits the head on pooled features; ``finetune`` fits the top blocks too. What stays frozen
is computed once and kept (``cache.py``). Both change the model in place.
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from logging import Logger
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from src import paths
from src.data.augmentation import build_augmentation
from src.data.labelled import LabelledPatches
from src.model.cache import ActivationCache
from src.model.checkpoint import Checkpoint
from src.model.class_weights import ClassWeights
from src.model.fast_gradient import fast_input_gradients
from src.model.features import standardise_features
from src.model.freezing import BatchNormMode, cut, unfreeze
from src.model.loop import Epoch, Fit, Phase, Score, fit
from src.model.precision import bfloat16_layers, uses_bfloat16
from src.model.replicas import in_replicas
from src.model.step import TailStep
from src.model.step_choice import StepChoice, best_step
from src.model.trunk import Trunk
from src.model.weights import weights_sha256
from src.params import CacheParams, FinetuneParams, ModelParams, RuntimeParams, TrainParams
from src.system.determinism import Environment

if TYPE_CHECKING:
    import keras

_BYTES_A_GB = 10**9


@dataclass(frozen=True)
class Setting:
    """What both phases are given besides the model and their own parameters.

    Attributes
    ----------
    initial_sha256 : digest of the weights the model starts from
    checkpoint : where the state is kept while the phase runs
    auroc : labels, logits → area under the ROC curve
    on_epoch : hears of every epoch, in order, after a resume too
    """

    train: LabelledPatches
    val: LabelledPatches
    weights: ClassWeights
    initial_sha256: str
    model: ModelParams
    cache: CacheParams
    runtime: RuntimeParams
    checkpoint: Checkpoint
    environment: Environment
    auroc: Score
    on_epoch: Callable[[Epoch], None]
    log: Logger
    activations: Path = paths.ACTIVATIONS


@dataclass(frozen=True)
class Fitted:
    """What a phase leaves: ``facts`` for ``fit.json``, the same from every run of the same work."""

    facts: dict[str, Any]
    timing: dict[str, Any]


def train_head(model: "keras.Model", params: TrainParams, setting: Setting) -> Fitted:
    """Fit the head on features of the frozen backbone, each patch in ``params.views`` views."""
    return _fit_top(model, params, setting, name="train", depth=0, batch_norm="frozen")


def finetune_top(model: "keras.Model", params: FinetuneParams, setting: Setting) -> Fitted:
    """Fit the head, trained before, together with the top ``params.depth`` residual blocks."""
    return _fit_top(
        model,
        params,
        setting,
        name="finetune",
        depth=params.depth,
        batch_norm=params.batch_norm,
    )


def _fit_top(
    model: "keras.Model",
    params: TrainParams,
    setting: Setting,
    *,
    name: str,
    depth: int,
    batch_norm: BatchNormMode,
) -> Fitted:
    backbone = setting.model.backbone
    unfreeze(model, backbone=backbone, depth=depth, batch_norm=batch_norm)
    trunk_model, tail = cut(model, backbone=backbone, depth=depth)
    trunk = _trunk(trunk_model, depth, setting)
    # val first: it is small, and met in every epoch
    val_inputs = trunk.inputs(setting.val, views=1, epochs=params.epochs)
    augment = params.augment if isinstance(params, FinetuneParams) else None
    augmentation = build_augmentation(augment, seed=params.seed)
    if augmentation is None:
        train_inputs = trunk.inputs(setting.train, views=params.views, epochs=params.epochs)
    else:
        train_inputs = trunk.augmented(setting.train, augmentation)
    if name == "train":
        standardise_features(model, train_inputs, len(setting.train))
    how = _how(setting, depth)
    step = TailStep(
        tail, params, backbone=backbone, jit_compile=how["xla"], jit_update=how["xla_update"]
    )
    phase = Phase(
        name=name,
        tail=tail,
        step=in_replicas(step, params.batch_size),
        train_inputs=train_inputs,
        val_inputs=val_inputs,
        train_labels=setting.train.labels,
        val_labels=setting.val.labels,
        weights=setting.weights,
        params=params,
        auroc=setting.auroc,
        random_state=augmentation.variables if augmentation is not None else (),
        checkpoint_s=60 * setting.runtime.checkpoint_minutes,
    )
    with (
        fast_input_gradients(tail) if how["fast_gradient"] else nullcontext(),
        bfloat16_layers(tail) if how["bfloat16"] else nullcontext(),
    ):
        fitted = fit(
            phase, checkpoint=setting.checkpoint, on_epoch=setting.on_epoch, log=setting.log
        )
    facts = _facts(model, phase, fitted, setting)
    return Fitted({**facts, "environment": {**setting.environment, **how}}, fitted.timing())


def _trunk(trunk_model: "keras.Model | None", depth: int, setting: Setting) -> Trunk:
    max_bytes = int(setting.cache.max_gb * _BYTES_A_GB)
    return Trunk(
        trunk_model,
        depth=depth,
        params=setting.model,
        cache_params=setting.cache,
        cache=ActivationCache(setting.activations, max_bytes=max_bytes, log=setting.log),
        environment=setting.environment,
        log=setting.log,
    )


def _how(setting: Setting, depth: int) -> dict[str, bool]:
    """How a step is computed: gradients the fast way, with XLA in all or in part, in bfloat16."""
    n_gpus = int(setting.environment["gpus"])
    choice = best_step(depth=depth) if n_gpus == 0 else StepChoice(fast=False, xla=depth > 0)
    xla = {"on": True, "off": False}.get(setting.runtime.xla, choice.xla)
    return {
        "fast_gradient": choice.fast,
        "xla": xla and n_gpus < 2,
        "xla_update": depth > 0 and n_gpus < 2 and setting.runtime.xla != "off",
        "bfloat16": uses_bfloat16(setting.runtime.mixed_precision),
    }


def _facts(model: "keras.Model", phase: Phase, fitted: Fit, setting: Setting) -> dict[str, Any]:
    trainable = sum(int(np.prod(v.shape)) for v in model.trainable_variables)
    return {
        "stage": phase.name,
        **fitted.as_dict(),
        "class_weights": setting.weights.as_dict(),
        "schedule": phase.params.schedule.model_dump(),
        "n_train": len(phase.train_labels),
        "n_val": len(phase.val_labels),
        "initial_weights_sha256": setting.initial_sha256,
        "final_weights_sha256": weights_sha256(model),
        "trainable_parameters": trainable,
        "total_parameters": int(model.count_params()),
    }
