"""A study: where it is kept, what it belongs to, how its trials are drawn, pruned and retried.

Optuna does the work: its database has every trial, a trial sends a heartbeat while it trains, and
one that has fallen silent is failed and enqueued again by whichever worker next starts a trial.
"""

from __future__ import annotations

import os
import re
import uuid
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import sqlalchemy
from filelock import FileLock
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from src import paths
from src.params import HalvingPruner, MedianPruner, Params, TuneParams
from src.system.nested import flatten
from src.tuning.space import PRESENT, TuneError, present_as_drawn

HEARTBEAT_S = 10
STALE_AFTER_S = 60  # a worker that was silent this long counts as dead
MAX_RETRIES = 3

KEY = "key"  # tells a study from a deleted one of the same name
IDENTITY = "identity"
REASON = "reason"  # why a trial failed
SHA256 = "final_weights_sha256"
COUNTED = (TrialState.COMPLETE, TrialState.PRUNED)  # towards the budget

_N_STARTS = "n_starts"
_SQLITE = "sqlite:///"
_POSTGRESQL = re.compile(r"^postgres(ql)?(\+\w+)?://")
_LOCK_TIMEOUT_S = 300
_NOT_IN_IDENTITY = {"n_trials", "seed", "log_weights", "startup_trials", "pruner"}
_MOST_NAMED = 3
_LONGEST_SHOWN = 40

optuna.logging.set_verbosity(optuna.logging.ERROR)
warnings.filterwarnings("ignore", category=ExperimentalWarning)


@dataclass(frozen=True)
class Job:
    """What a worker process is told."""

    study: str
    url: str  # of the database
    params: Params  # with what the command line changed
    parent_run_id: str  # MLflow's run of the study
    deadline_s: float | None  # Unix time after which no trial begins
    threads: int
    sampler_seed: int = 0
    log_file: str = os.devnull


def storage_url(given: str | None) -> str:
    """The database's URL for SQLAlchemy; None means ``tune.db`` at the project's root.

    A SQLite file is named by its absolute path, however it was given, so that all share its lock.
    """
    if given is None:
        return f"{_SQLITE}{paths.TUNE_DB}"
    if _POSTGRESQL.match(given):
        return _POSTGRESQL.sub("postgresql+psycopg://", given)
    if not given.startswith(_SQLITE):
        raise TuneError(
            f"storage must be sqlite:///FILE or postgresql://USER@HOST/DATABASE "
            f"(got {without_password(given)})"
        )
    name = given.removeprefix(_SQLITE)
    if not name or name.startswith((":", "file:")) or "?" in name:
        raise TuneError(
            f"storage {given} must name a file that all workers open, as in sqlite:///studies.db"
        )
    folder = Path(name).resolve().parent
    if not folder.is_dir():
        raise TuneError(
            f"storage {given}: there is no folder {folder}; create it, or check --storage"
        )
    return f"{_SQLITE}{Path(name).resolve()}"


def without_password(url: str) -> str:
    """A URL without user and password."""
    return re.sub(r"://[^/@\s]+@", "://", url)


def state_of(trial: FrozenTrial) -> str:
    """``complete``, ``pruned``, ``failed``, ``running`` or ``waiting``."""
    return "failed" if trial.state == TrialState.FAIL else trial.state.name.lower()


@contextmanager
def reporting(url: str) -> Iterator[None]:
    """Turn what the database raises into one line that names it and the way out."""
    try:
        yield
    except (SQLAlchemyError, StorageInternalError, ModuleNotFoundError) as error:
        way_out = "start it, or check --storage"
        if isinstance(error, ModuleNotFoundError):
            if error.name != "psycopg":
                raise
            way_out = "pip install 'psycopg[binary]'"
        # Optuna wraps SQLAlchemy's error, which wraps the driver's: the innermost says what's wrong
        source = error.__cause__ or error
        cause = without_password(" ".join(str(getattr(source, "orig", source)).split())[:200])
        raise TuneError(
            f"study storage {without_password(url)} can't be used: {cause}; {way_out}"
        ) from error


@contextmanager
def locked(url: str) -> Iterator[None]:
    """Hold a lock on the database: tables, studies and MLflow's parent runs are created once.

    Optuna's own creation of tables races: of ten processes on a fresh SQLite file two died.
    """
    if url.startswith(_SQLITE):
        lock = FileLock(f"{url.removeprefix(_SQLITE)}.lock", timeout=_LOCK_TIMEOUT_S)
        try:
            lock.acquire()
        except OSError as error:  # not writable, or held for minutes
            raise TuneError(
                f"study storage {url} can't be locked: {error}; check --storage, or end the "
                "process that holds it"
            ) from error
        try:
            yield
        finally:
            lock.release()
    else:
        engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool)
        with engine.connect() as connection:  # the lock ends with it, even if we are killed
            connection.execute(sqlalchemy.text("SELECT pg_advisory_lock(hashtext('hcd.tune'))"))
            yield


def open_study(url: str, name: str, tune: TuneParams, *, sampler_seed: int = 0) -> optuna.Study:
    """Open a study, created if it isn't there. The caller holds the lock unless it exists."""
    sampler = optuna.samplers.TPESampler(
        seed=sampler_seed,
        n_startup_trials=tune.startup_trials,
        multivariate=True,
        constant_liar=True,
    )
    with reporting(url):
        storage = RDBStorage(
            url,
            engine_kwargs={
                "poolclass": sqlalchemy.NullPool,  # no connection stays open while a trial trains
                **({"connect_args": {"timeout": 60}} if url.startswith(_SQLITE) else {}),
            },
            heartbeat_interval=HEARTBEAT_S,
            grace_period=STALE_AFTER_S,
            heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(MAX_RETRIES),
        )
        return optuna.create_study(
            storage=storage,
            study_name=name,
            direction="maximize" if tune.objective == "val_auroc" else "minimize",
            load_if_exists=True,
            sampler=sampler,
            pruner=pruner(tune),
        )


def pruner(tune: TuneParams) -> optuna.pruners.BasePruner:
    """The pruner that ``tune.pruner`` names."""
    match tune.pruner:
        case MedianPruner(startup_trials=n_trials, warmup_epochs=n_epochs):
            # epochs count from 1, Optuna's steps from 0
            return optuna.pruners.MedianPruner(n_trials, n_warmup_steps=n_epochs + 1)
        case HalvingPruner(min_epochs=n_epochs, reduction=factor):
            return optuna.pruners.SuccessiveHalvingPruner(n_epochs, reduction_factor=factor)
        case _:
            return optuna.pruners.NopPruner()


def begin_study(url: str, name: str, params: Params, identity: Mapping[str, Any]) -> optuna.Study:
    """Open a study; a new one is given its identity.

    The present parameters are enqueued where the space holds them and no trial has measured them,
    so that every gain is measured.
    """
    with reporting(url), locked(url):
        study = open_study(url, name, params.tune)
        if IDENTITY not in study.user_attrs:
            study.set_user_attr(KEY, uuid.uuid4().hex)
            study.set_user_attr(IDENTITY, dict(identity))
        drawn = present_as_drawn(params)
        trials = study.get_trials(deepcopy=False)
        is_tried = any(PRESENT in t.user_attrs and t.state != TrialState.FAIL for t in trials)
        if drawn is not None and not is_tried:
            study.enqueue_trial(drawn, user_attrs={PRESENT: True})
    return study


def next_seed(study: optuna.Study, url: str, tune: TuneParams) -> int:
    """A seed for the samplers of one more command on this study; no two get the same."""
    with locked(url):
        n_starts = int(study.user_attrs.get(_N_STARTS, 0))
        study.set_user_attr(_N_STARTS, n_starts + 1)
    return int(np.random.SeedSequence([tune.seed, n_starts]).generate_state(1)[0])


def count(trials: Sequence[FrozenTrial], *states: TrialState) -> int:
    """Trials in any of these states."""
    return sum(trial.state in states for trial in trials)


def is_spent(trials: Sequence[FrozenTrial], n_trials: int) -> bool:
    """Whether the budget is used up, or as many trials failed as it has room for."""
    return count(trials, *COUNTED) >= n_trials or count(trials, TrialState.FAIL) >= n_trials


def why_failed(trial: FrozenTrial) -> str | None:
    """Why a trial failed; None where it didn't. Every failure but a worker's death has a reason."""
    if trial.state != TrialState.FAIL:
        return None
    return str(trial.user_attrs.get(REASON, "its worker died"))


def sign_of(objective: str) -> int:
    """1 where a higher objective is better, -1 where a lower one is."""
    return 1 if objective == "val_auroc" else -1


def study_identity(params: Params, *, data: Mapping[str, str], code: str) -> dict[str, str]:
    """Everything that trials must share to be comparable, as text by name.

    Parameters in the space are left out: writing the best into ``params.yaml`` doesn't make it
    another study.
    """
    space = params.tune.space
    tune = params.tune.model_dump(exclude={*_NOT_IN_IDENTITY, "space"})
    identity = {f"data.{name}": value for name, value in data.items()}
    identity |= {"code": code, "cache.dtype": params.cache.dtype}
    identity |= {f"tune.{name}": value for name, value in tune.items()}
    identity |= {f"tune.space.{name}": str(each.model_dump()) for name, each in space.items()}
    for name, value in flatten(params.sections("model", "train", "finetune")).items():
        if not any(name == s or name.startswith(f"{s}.") for s in space):
            identity[name] = str(value)
    return {name: str(value) for name, value in identity.items()}


def check_identity(
    study: str,
    then: Mapping[str, str],
    now: Mapping[str, str],
    *,
    goes_on: bool = True,
    other_data: bool = False,
) -> None:
    """Refuse a study that belongs to something else.

    One that doesn't go on is only applied: then the data, the objective and the space must be the
    same (``other_data``: those but the data), but not the code or the fixed parameters.
    """
    found = []
    for name in sorted(then.keys() | now.keys()):
        values = [identity.get(name, "missing") for identity in (then, now)]
        is_data = name.startswith("data.")
        matters = goes_on or is_data or name.startswith(("tune.objective", "tune.space."))
        if values[0] != values[1] and matters and not (is_data and other_data):
            is_short = max(map(len, values)) <= _LONGEST_SHOWN
            found.append(f"{name} ({' → '.join(values)})" if is_short else name)
    if found:
        way_out = "change them back, or start another: --study NAME"
        if not goes_on and all(name.startswith("data.") for name in found):
            way_out = "start another: --study NAME, or apply it anyway: --apply --other-data"
        more = f" and {len(found) - _MOST_NAMED} more" if len(found) > _MOST_NAMED else ""
        raise TuneError(
            f"study {study} belongs to other data, code or parameters; since it began these "
            f"changed: {', '.join(found[:_MOST_NAMED])}{more}; {way_out}"
        )
