"""One trial: what ``train`` does, then what ``finetune`` does, with the trial's own parameters."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field, replace
from logging import Logger
from pathlib import Path
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from src import paths
from src.data.identity import dataset_identity
from src.data.labelled import LabelledPatches, load_split
from src.evaluation.metrics import auroc
from src.model.backbone import BACKBONES
from src.model.checkpoint import Arrays, Checkpoint, Facts
from src.model.class_weights import class_weights
from src.model.classifier import build_classifier
from src.model.frozen import FrozenBackbone
from src.model.loop import Epoch
from src.model.phases import Setting, finetune_top, train_head
from src.model.replicas import device_scope
from src.model.weights import load_initial_weights, weights_sha256
from src.params import Params
from src.system.determinism import Environment
from src.tuning.space import TuneError, depths

OnEpoch = Callable[[Epoch], None]

_HEADS_KEPT = 4  # in memory, about 100 MB each with ResNet50


@dataclass(frozen=True)
class SearchData:
    """The patches a search sees: train, or a subset of it, and val; never holdout."""

    train: LabelledPatches
    val: LabelledPatches

    @property
    def digest(self) -> str:
        """SHA-256 of pixels, order and labels of both."""
        digest = hashlib.sha256()
        for patches in (self.train, self.val):
            digest.update(patches.digest.encode() + patches.labels.tobytes())
        return digest.hexdigest()


def data_digests(params: Params) -> dict[str, str]:
    """What tells the data of one search from that of another."""
    data = load_data(subset=params.tune.subset, seed=params.train.seed)
    about = dataset_identity(data.train, data.val)
    digests = {name: str(about[name]) for name in ("content_digest", "split_sha256")}
    return {**digests, "patches": data.digest}


def load_data(*, subset: int | None, seed: int) -> SearchData:
    """Train, or ``subset`` patches of it, and val; holdout is never opened."""
    train = load_split("train")
    chosen = train if subset is None else subset_of(train, subset, seed=seed)
    return SearchData(chosen, load_split("val"))


def subset_of(patches: LabelledPatches, n: int, *, seed: int) -> LabelledPatches:
    """``n`` patches drawn at random, each class with its share; all where there are fewer.

    The order of ids stays.
    """
    if n >= len(patches):
        return patches
    rng = np.random.default_rng(seed)
    is_tumour = patches.labels == 1
    n_tumour = min(max(1, round(n * float(is_tumour.mean()))), n - 1)
    tumour = rng.choice(np.flatnonzero(is_tumour), n_tumour, replace=False)
    normal = rng.choice(np.flatnonzero(~is_tumour), n - n_tumour, replace=False)
    chosen = np.sort(np.concatenate([tumour, normal]))
    columns = {name: getattr(patches, name)[chosen] for name in ("ids", "rows", "labels", "groups")}
    return replace(patches, **columns)


def check_depths(params: Params) -> None:
    """Refuse depths that the backbone hasn't."""
    n_blocks = len(BACKBONES[params.model.backbone].blocks)
    deepest = max(depths(params))
    if deepest > n_blocks:
        raise TuneError(
            f"tune.space.finetune.depth must be ≤ {n_blocks}, the residual blocks of "
            f"{params.model.backbone} (got {deepest})"
        )


@dataclass(frozen=True)
class Search:
    """What all trials of a process share.

    Attributes
    ----------
    depths : that trials may have: one pass through frozen layers keeps the activations of all
    heads : the fitted classifiers, by the parameters that led to them: Keras' config and weights
    """

    data: SearchData
    environment: Environment
    log: Logger
    depths: Iterable[int] = ()
    heads: dict[str, tuple[dict[str, Any], list[NDArray[Any]]]] = field(default_factory=dict)


@dataclass(frozen=True)
class TrialResult:
    """A fine-tuned model, and what ``fit.json`` would say of it."""

    model: keras.Model
    fit: dict[str, Any]


def run_trial(params: Params, search: Search, on_epoch: OnEpoch | None = None) -> TrialResult:
    """Fit the head, unless a former trial did, then fine-tune; ``on_epoch`` hears of fine-tuning.

    The weights are those of the two stages, bit for bit, whatever ran before in this process. What
    ``on_epoch`` raises ends the trial and is passed on.

    Raises
    ------
    TrainingDiverged
        The loss became NaN or infinite.
    """
    with device_scope(int(search.environment["gpus"])):
        key = json.dumps(params.sections("model", "train"), sort_keys=True)
        if key not in search.heads:
            start_phase(params.train.seed)
            head = build_classifier(params.model)
            load_initial_weights(head, params.model)
            _fit_phase(head, params, "train", search, None)
            while len(search.heads) >= _HEADS_KEPT:
                del search.heads[next(iter(search.heads))]
            search.heads[key] = (head.get_config(), head.get_weights())
        config, weights = search.heads[key]
        # rebuilt as `finetune` loads it: the seed decides dropout, so it is set before
        start_phase(params.finetune.seed)
        model = keras.Model.from_config(deepcopy(config))  # it empties what it is given
        model.set_weights(weights)
        fit = _fit_phase(model, params, "finetune", search, on_epoch)
    return TrialResult(model, fit)


def score(fit: Mapping[str, Any], objective: str) -> float:
    """The objective at the epoch whose weights are kept."""
    return float(fit["history"][fit["best_epoch"] - 1][objective])


def start_phase(seed: int) -> None:
    """As a fresh process starts a phase: no names or state of earlier models, seeds set anew."""
    keras.backend.clear_session()  # collects garbage as well
    keras.utils.set_random_seed(seed)


def _fit_phase(
    model: keras.Model,
    params: Params,
    stage: str,
    search: Search,
    on_epoch: OnEpoch | None,
) -> dict[str, Any]:
    """Fit ``model`` in place as the stage does, without a checkpoint; returns ``fit.json``."""
    section = params.train if stage == "train" else params.finetune
    frozen = None
    if not search.environment["gpus"]:  # where shared passes give the same bits as single ones
        frozen = FrozenBackbone(
            model,
            backbone=params.model.backbone,
            depths=[0, *search.depths],
            cache_params=params.cache,
            environment=search.environment,
        )
    setting = Setting(
        train=search.data.train,
        val=search.data.val,
        weights=class_weights(search.data.train.labels, section.class_weights),
        initial_sha256=weights_sha256(model),
        model=params.model,
        cache=params.cache,
        runtime=params.runtime,
        checkpoint=_NoCheckpoint(search.log),
        environment=search.environment,
        auroc=auroc,
        on_epoch=on_epoch or (lambda _: None),
        log=search.log,
        activations=paths.ACTIVATIONS,
        frozen=frozen,
    )
    if stage == "train":
        return train_head(model, params.train, setting).facts
    return finetune_top(model, params.finetune, setting).facts


class _NoCheckpoint(Checkpoint):
    """A trial is short: one that is killed is run again from its start."""

    def __init__(self, log: Logger) -> None:
        super().__init__(Path("unused"), identity={}, log=log)

    def save(self, *, arrays: Mapping[str, Iterable[NDArray[Any]]], facts: Facts) -> None:
        """Keep nothing."""

    def load(self) -> tuple[Arrays, Facts] | None:
        """Nothing was kept."""
        return None
