"""The two phases of training, from a model and its patches to the fitted model and ``fit.json``.

``train`` fits the head on pooled features; ``finetune`` fits the top blocks too. What stays frozen
is computed once and kept (``cache.py``). Both change the model in place.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from logging import Logger
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from src import paths
from src.data.augmentation import build_augmentation
from src.data.dataset import LabelledPatches
from src.model.boundary import Boundary
from src.model.cache import ActivationCache
from src.model.checkpoint import Checkpoint
from src.model.class_weights import ClassWeights
from src.model.fast_gradient import fast_input_gradients
from src.model.features import standardise_features
from src.model.freezing import BatchNormMode, boundary_layer, cut, unfreeze
from src.model.frozen import FrozenBackbone
from src.model.loop import Epoch, Fit, Phase, Score, fit
from src.model.precision import bfloat16_layers, uses_bfloat16
from src.model.replicas import in_replicas
from src.model.step import TailStep
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
    frozen : the backbone before fine-tuning, cut at depths whose activations others will need:
        where patches go through frozen layers for this phase, those are kept too
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
    frozen: FrozenBackbone | None = None


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
    how = step_ways(
        setting.runtime,
        backbone=setting.model.backbone,
        depth=depth,
        n_gpus=int(setting.environment["gpus"]),
    )
    max_bytes = int(setting.cache.max_gb * _BYTES_A_GB)
    with ActivationCache(setting.activations, max_bytes=max_bytes, log=setting.log) as cache:
        phase = make_phase(
            model, params, setting, cache, how, name=name, depth=depth, batch_norm=batch_norm
        )
        with stepping(phase.tail, how):
            fitted = fit(
                phase, checkpoint=setting.checkpoint, on_epoch=setting.on_epoch, log=setting.log
            )
    facts = _facts(model, phase, fitted, setting)
    return Fitted({**facts, "environment": {**setting.environment, **how}}, fitted.timing())


def make_phase(
    model: "keras.Model",
    params: TrainParams,
    setting: Setting,
    cache: ActivationCache,
    how: Mapping[str, bool],
    *,
    name: str,
    depth: int,
    batch_norm: BatchNormMode,
) -> Phase:
    """``model`` cut and frozen, with its inputs and its step, ready to be fitted.

    ``train`` gives the head the mean and variance of its features on the way.
    """
    backbone = setting.model.backbone
    unfreeze(model, backbone=backbone, depth=depth, batch_norm=batch_norm)
    trunk_model, tail = cut(model, backbone=backbone, depth=depth)
    boundary = None
    if trunk_model is not None:
        boundary = Boundary(
            trunk_model, depth=depth, cache_params=setting.cache, environment=setting.environment
        )
    trunk = Trunk(boundary, depth=depth, cache=cache, log=setting.log, frozen=setting.frozen)
    # val first: it is small, and met in every epoch
    val_inputs = trunk.inputs(setting.val, views=1, passes=params.epochs)
    augment = params.augment if isinstance(params, FinetuneParams) else None
    augmentation = build_augmentation(augment, seed=params.seed)
    measures = name == "train"  # one more pass, in view 0
    if augmentation is None:
        train_inputs = trunk.inputs(
            setting.train, views=params.views, passes=params.epochs + measures
        )
    else:
        train_inputs = trunk.augmented(setting.train, augmentation)
    if measures:
        standardise_features(model, train_inputs, len(setting.train))
    step = TailStep(
        tail, params, backbone=backbone, jit_compile=how["xla"], jit_update=how["xla_update"]
    )
    return Phase(
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
        free_disk=cache.give_way,
    )


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
def stepping(tail: "keras.Model", how: Mapping[str, bool]) -> Iterator[None]:
    """What is traced inside computes ``tail`` in the ways that :func:`step_ways` chose."""
    with (
        fast_input_gradients(tail) if how["fast_gradient"] else nullcontext(),
        bfloat16_layers(tail) if how["bfloat16"] else nullcontext(),
    ):
        yield


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
