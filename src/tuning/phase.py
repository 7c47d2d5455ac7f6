"""What the trials of a process share, and what a result of theirs is known by."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from logging import Logger
from pathlib import Path

import keras

from src import paths
from src.model.checkpoint import work_key
from src.model.training import Epoch
from src.params import Params
from src.system.code import training_code_digest
from src.system.determinism import Environment
from src.tuning.search_data import SearchData

OnEpoch = Callable[[Epoch], None]

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
    keras.backend.clear_session()  # collects garbage as well
    keras.utils.set_random_seed(seed)


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
