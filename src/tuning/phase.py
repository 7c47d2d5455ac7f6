"""How a trial runs a phase: the setting that the stages give it, without a checkpoint."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from logging import Logger
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from src import paths
from src.model.checkpoint import Arrays, Checkpoint, Facts, work_key
from src.params import FinetuneParams, Params, TrainParams
from src.system.code import training_code_digest
from src.system.determinism import Environment
from src.tuning.search_data import SearchData

if TYPE_CHECKING:
    from src.model.frozen import FrozenBackbone
    from src.model.loop import Epoch
    from src.model.phases import Setting

OnEpoch = Callable[["Epoch"], None]

_CHANGES_ROUNDING = {"xla", "mixed_precision"}


@dataclass(frozen=True)
class Search:
    """What all trials of a process share.

    Attributes
    ----------
    depths : that trials may have
    heads : folder of the fitted heads
    """

    data: SearchData
    environment: Environment
    log: Logger
    depths: Sequence[int] = ()
    heads: Path = paths.TUNE_HEADS


def start_phase(seed: int) -> None:
    """As a fresh process starts a phase: no names or state of earlier models, seeds set anew."""
    import keras

    keras.backend.clear_session()  # collects garbage as well
    keras.utils.set_random_seed(seed)


def phase_setting(
    params: Params,
    section: TrainParams | FinetuneParams,
    search: Search,
    *,
    initial_sha256: str,
    frozen: "FrozenBackbone | None",
    on_epoch: OnEpoch = lambda _: None,
) -> "Setting":
    """What the phase of ``section`` is given."""
    from src.evaluation.metrics import auroc
    from src.model.class_weights import class_weights
    from src.model.phases import Setting

    return Setting(
        train=search.data.train,
        val=search.data.val,
        weights=class_weights(search.data.train.labels, section.class_weights),
        initial_sha256=initial_sha256,
        model=params.model,
        cache=params.cache,
        runtime=params.runtime,
        checkpoint=_NoCheckpoint(search.log),
        environment=search.environment,
        auroc=auroc,
        on_epoch=on_epoch,
        log=search.log,
        activations=paths.ACTIVATIONS,
        frozen=frozen,
    )


def result_key(params: Params, search: Search, *, sections: Sequence[str]) -> str:
    """SHA-256 of all that a result of these sections of ``params`` depends on."""
    return work_key(
        {
            "params": params.sections(*sections),
            "dtype": params.cache.dtype,
            "data": search.data.digest,
            "environment": dict(search.environment),
            "runtime": params.runtime.model_dump(include=_CHANGES_ROUNDING),
            "code": training_code_digest(),
        }
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
