"""One trial: what ``train`` does, then what ``finetune`` does, with the trial's own parameters."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field, replace
from logging import Logger
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from src.data.dataset import LabelledPatches, dataset_identity, load_split
from src.model.backbone import BACKBONES
from src.model.classifier import build_classifier
from src.model.step import device_scope
from src.model.training import Epoch, Stage, fit_phase
from src.model.weights import load_initial_weights
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


def run_trial(
    params: Params, search: Search, on_epoch: OnEpoch = lambda _: None
) -> tuple[keras.Model, dict[str, Any]]:
    """Fit the head, unless a former trial did, then fine-tune; ``on_epoch`` hears of fine-tuning.

    Returns the model and what ``fit.json`` would say. The weights are those of the two stages, bit
    for bit, whatever ran before in this process. What ``on_epoch`` raises ends the trial.
    """

    def fit(model: keras.Model, stage: Stage, hear: OnEpoch) -> dict[str, Any]:
        return fit_phase(
            model,
            search.data.train,
            search.data.val,
            params,
            stage,
            environment=search.environment,
            checkpoint=None,  # a trial is short: one that is killed is run again from its start
            on_epoch=hear,
            log=search.log,
            depths=[0, *search.depths],
        ).facts

    with device_scope(int(search.environment["gpus"])):
        key = json.dumps(params.sections("model", "train"), sort_keys=True)
        if key not in search.heads:
            start_phase(params.train.seed)
            head = build_classifier(params.model)
            load_initial_weights(head, params.model)
            fit(head, "train", lambda _: None)
            while len(search.heads) >= _HEADS_KEPT:
                del search.heads[next(iter(search.heads))]
            search.heads[key] = (head.get_config(), head.get_weights())
        config, weights = search.heads[key]
        # rebuilt as `finetune` loads it: the seed decides dropout, so it is set before
        start_phase(params.finetune.seed)
        model = keras.Model.from_config(deepcopy(config))  # it empties what it is given
        model.set_weights(weights)
        return model, fit(model, "finetune", on_epoch)


def score(fit: Mapping[str, Any], objective: str) -> float:
    """The objective at the epoch whose weights are kept."""
    return float(fit["history"][fit["best_epoch"] - 1][objective])


def start_phase(seed: int) -> None:
    """As a fresh process starts a phase: no names or state of earlier models, seeds set anew."""
    keras.backend.clear_session()  # collects garbage as well
    keras.utils.set_random_seed(seed)
