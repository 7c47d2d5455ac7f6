"""One trial: the code of ``train``, then that of ``finetune``, with the trial's parameters.

The head is fitted once for all trials that agree in its parameters and kept below
``.cache/tune/heads``, by the digest of all it depends on. Nothing here reads holdout.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from logging import Logger
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from src import paths
from src.data.labelled import LabelledPatches
from src.model.checkpoint import Arrays, Checkpoint, Facts, work_key
from src.params import FinetuneParams, Params, TrainParams
from src.system.code import training_code_digest
from src.system.determinism import Environment
from src.system.durable import IntegrityError
from src.tuning.tidying import keep_newest, mark_used

if TYPE_CHECKING:
    import keras

    from src.model.class_weights import ClassWeights
    from src.model.loop import Epoch
    from src.model.phases import Setting

OnEpoch = Callable[["Epoch"], None]

_CHANGES_ROUNDING = {"xla", "mixed_precision"}
_HEADS_KEPT = 16  # of a big ResNet 100 MB each


@dataclass(frozen=True)
class SearchData:
    """The patches a search sees: (a subset of) train, and val."""

    train: LabelledPatches
    val: LabelledPatches

    @property
    def digest(self) -> str:
        """SHA-256 of pixels, order and labels of both."""
        digest = hashlib.sha256()
        for patches in (self.train, self.val):
            digest.update(patches.digest.encode() + patches.labels.tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class TrialResult:
    """A fine-tuned model, with what ``fit.json`` and ``timing.json`` would say."""

    model: "keras.Model"
    fit: dict[str, Any]
    timing: dict[str, Any]


def load_data(*, subset: int | None, seed: int) -> SearchData:
    """Train, or ``subset`` patches of it, and val; holdout is never opened."""
    from src.data.labelled import load_split

    train = load_split("train")
    chosen = train if subset is None else subset_of(train, subset, seed=seed)
    return SearchData(chosen, load_split("val"))


def subset_of(patches: LabelledPatches, n: int, *, seed: int) -> LabelledPatches:
    """``n`` patches drawn at random, with the share of each class kept; all where there are fewer.

    The order of ids stays.
    """
    if n >= len(patches):
        return patches
    rng = np.random.default_rng(seed)
    is_tumour = patches.labels == 1
    n_tumour = min(max(1, round(n * float(is_tumour.mean()))), n - 1)
    chosen = np.sort(
        np.concatenate(
            [
                rng.choice(np.flatnonzero(is_tumour), n_tumour, replace=False),
                rng.choice(np.flatnonzero(~is_tumour), n - n_tumour, replace=False),
            ]
        )
    )
    columns = {name: getattr(patches, name)[chosen] for name in ("ids", "rows", "labels", "groups")}
    return replace(patches, **columns)


def run_trial(
    params: Params,
    search: SearchData,
    *,
    environment: Environment,
    on_epoch: OnEpoch,
    log: Logger,
    also_keep: Sequence[int] = (),
    heads: Path = paths.TUNE_HEADS,
) -> TrialResult:
    """Fit the head (or take the one kept), then fine-tune; ``on_epoch`` hears of fine-tuning.

    What ``on_epoch`` raises ends the trial and is passed on. ``also_keep`` are depths of other
    trials, see :class:`src.model.phases.Setting`.

    Raises
    ------
    TrainingDiverged
        The loss became NaN or infinite.
    """
    from src.model.inference import load_classifier
    from src.model.phases import finetune_top
    from src.model.replicas import device_scope
    from src.model.weights import weights_sha256

    folder = ensure_head(
        params, search, environment=environment, log=log, also_keep=also_keep, heads=heads
    )
    start_phase(params.finetune.seed)
    with device_scope(int(environment["gpus"])):
        classifier = load_classifier(folder)
        setting = _setting(
            params,
            params.finetune,
            search,
            initial_sha256=weights_sha256(classifier),
            environment=environment,
            on_epoch=on_epoch,
            log=log,
            also_keep=also_keep,
        )
        fitted = finetune_top(classifier, params.finetune, setting)
    return TrialResult(classifier, fitted.facts, fitted.timing)


def ensure_head(
    params: Params,
    search: SearchData,
    *,
    environment: Environment,
    log: Logger,
    also_keep: Sequence[int] = (),
    heads: Path = paths.TUNE_HEADS,
) -> Path:
    """The folder of the head that these parameters lead to, fitted now unless it was before.

    Two processes that want the same one take turns.
    """
    from filelock import FileLock

    from src.system.durable import verify_folder

    key = result_key(params, search, environment, sections=("model", "train"))
    folder = heads / key[:32]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        try:
            verify_folder(folder)
        except IntegrityError:
            _fit_head(params, search, environment, folder, log, also_keep)
        mark_used(folder)
    keep_newest(heads, _HEADS_KEPT)
    return folder


def _fit_head(
    params: Params,
    search: SearchData,
    environment: Environment,
    folder: Path,
    log: Logger,
    also_keep: Sequence[int],
) -> None:
    from src.model.classifier import build_classifier
    from src.model.phases import train_head
    from src.model.replicas import device_scope
    from src.model.saving import save_phase
    from src.model.weights import load_initial_weights, weights_sha256

    start_phase(params.train.seed)
    with device_scope(int(environment["gpus"])):
        classifier = build_classifier(params.model)
        load_initial_weights(classifier, params.model)
        setting = _setting(
            params,
            params.train,
            search,
            initial_sha256=weights_sha256(classifier),
            environment=environment,
            on_epoch=lambda _: None,
            log=log,
            also_keep=also_keep,
        )
        fitted = train_head(classifier, params.train, setting)
    save_phase(folder, classifier, fit=fitted.facts, timing=fitted.timing, run={})


def result_key(
    params: Params, search: SearchData, environment: Environment, *, sections: tuple[str, ...]
) -> str:
    """SHA-256 of all that a result of these sections of ``params`` depends on."""
    return work_key(
        {
            "params": params.sections(*sections),
            "dtype": params.cache.dtype,
            "data": search.digest,
            "environment": dict(environment),
            "runtime": params.runtime.model_dump(include=_CHANGES_ROUNDING),
            "code": training_code_digest(),
        }
    )


def start_phase(seed: int) -> None:
    """As a fresh process starts a phase: no names or state of earlier models, seeds set anew."""
    import keras

    keras.backend.clear_session()  # collects garbage as well
    keras.utils.set_random_seed(seed)


def class_weights_of(params: Params, search: SearchData) -> "ClassWeights":
    """Of fine-tuning."""
    from src.model.class_weights import class_weights

    return class_weights(search.train.labels, params.finetune.class_weights)


def _setting(
    params: Params,
    section: TrainParams | FinetuneParams,
    search: SearchData,
    *,
    initial_sha256: str,
    environment: Environment,
    on_epoch: OnEpoch,
    log: Logger,
    also_keep: Sequence[int],
) -> "Setting":
    from src.evaluation.metrics import auroc
    from src.model.class_weights import class_weights
    from src.model.phases import Setting

    return Setting(
        train=search.train,
        val=search.val,
        weights=class_weights(search.train.labels, section.class_weights),
        initial_sha256=initial_sha256,
        model=params.model,
        cache=params.cache,
        runtime=params.runtime,
        checkpoint=_NoCheckpoint(log),
        environment=environment,
        auroc=auroc,
        on_epoch=on_epoch,
        log=log,
        activations=paths.ACTIVATIONS,
        also_keep=also_keep,
    )


class _NoCheckpoint(Checkpoint):
    """A trial is short: one that is killed is run again from its start."""

    def __init__(self, log: Logger) -> None:
        super().__init__(Path("unused"), identity={}, log=log)

    def save(self, *, arrays: Mapping[str, Iterable[NDArray[Any]]], facts: Facts) -> None:
        """Keep nothing."""

    def load(self) -> tuple[Arrays, Facts] | None:
        """Nothing was kept."""
        return None
