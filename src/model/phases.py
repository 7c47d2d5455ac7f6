"""The two phases of training, from a model and its patches to the fitted model and ``fit.json``.

``train`` fits the head on pooled features computed once; ``finetune`` fits the top blocks too.
Both change the model in place and return what ``fit.json`` holds.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from logging import Logger
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from src import paths
from src.data.labelled import LabelledPatches
from src.model.checkpoint import Checkpoint, work_key
from src.model.class_weights import ClassWeights
from src.model.features import pooled_features, standardise_features
from src.model.freezing import cut, unfreeze
from src.model.inputs import feature_inputs, pixel_inputs
from src.model.loop import Epoch, Phase, Score, fit
from src.model.weights import weights_sha256
from src.params import FinetuneParams, ModelParams, RuntimeParams, TrainParams
from src.system.determinism import Environment

if TYPE_CHECKING:
    import keras

_CODE = [Path(__file__).parent, Path(__file__).parent.parent / "data"]


@dataclass(frozen=True)
class Setting:
    """What both phases are given besides the model.

    Attributes
    ----------
    initial_sha256 : digest of the weights the model starts from
    identity : data and parameters the result depends on; with the code it keys the checkpoint
    auroc : labels, logits → area under the ROC curve
    on_epoch : hears of every epoch, in order, after a resume too
    """

    train: LabelledPatches
    val: LabelledPatches
    weights: ClassWeights
    initial_sha256: str
    model: ModelParams
    runtime: RuntimeParams
    identity: dict[str, Any]
    environment: Environment
    auroc: Score
    on_epoch: Callable[[Epoch], None]
    log: Logger


def train_head(model: "keras.Model", params: TrainParams, setting: Setting) -> dict[str, Any]:
    """Fit the head on features of the frozen backbone, each patch in ``params.views`` views."""
    unfreeze(model, backbone=setting.model.backbone, depth=0, batch_norm="frozen")
    trunk, tail = cut(model, backbone=setting.model.backbone, depth=0)
    paths.CACHE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=paths.CACHE, prefix="features-") as folder:
        features = {
            patches.split: pooled_features(
                trunk,
                patches,
                n_views=n_views,
                batch_size=setting.runtime.inference_batch_size,
                file=Path(folder) / f"{patches.split}.npy",
                log=setting.log,
            )
            for patches, n_views in ((setting.train, params.views), (setting.val, 1))
        }
        standardise_features(model, features["train"])
        phase = Phase(
            name="train",
            tail=tail,
            train_inputs=feature_inputs(features["train"]),
            val_inputs=feature_inputs(features["val"]),
            train_labels=setting.train.labels,
            val_labels=setting.val.labels,
            weights=setting.weights,
            params=params,
            auroc=setting.auroc,
            jit_compile=_uses_xla(setting.runtime, depth=0),
        )
        return _fit(model, phase, setting)


def finetune_top(model: "keras.Model", params: FinetuneParams, setting: Setting) -> dict[str, Any]:
    """Fit the head, trained before, together with the top ``params.depth`` residual blocks."""
    unfreeze(
        model,
        backbone=setting.model.backbone,
        depth=params.depth,
        batch_norm=params.batch_norm,
    )
    trunk, tail = cut(model, backbone=setting.model.backbone, depth=params.depth)
    phase = Phase(
        name="finetune",
        tail=tail,
        train_inputs=pixel_inputs(trunk, setting.train),
        val_inputs=pixel_inputs(trunk, setting.val),
        train_labels=setting.train.labels,
        val_labels=setting.val.labels,
        weights=setting.weights,
        params=params,
        auroc=setting.auroc,
        jit_compile=_uses_xla(setting.runtime, depth=params.depth),
    )
    return _fit(model, phase, setting)


def _uses_xla(runtime: RuntimeParams, *, depth: int) -> bool:
    # XLA fuses the passes between convolutions. Without convolutions (depth 0) there is nothing to
    # fuse, and its random numbers for dropout made a step 15 times slower on a CPU.
    return runtime.xla == "on" or (runtime.xla == "auto" and depth > 0)


def _fit(model: "keras.Model", phase: Phase, setting: Setting) -> dict[str, Any]:
    checkpoint = Checkpoint(
        paths.CACHE / "checkpoints" / f"{phase.name}.npz",
        key=work_key({**setting.identity, "initial": setting.initial_sha256}, code=_CODE),
        log=setting.log,
    )
    fitted = fit(phase, checkpoint=checkpoint, on_epoch=setting.on_epoch, log=setting.log)
    checkpoint.discard()
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
        "environment": dict(setting.environment),
    }
