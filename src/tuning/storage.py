"""Where studies are kept: SQLite by default, PostgreSQL by URL; created once, locked for claims."""

import hashlib
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from src import paths
from src.system.errors import ProjectError

if TYPE_CHECKING:
    import optuna
    from optuna.storages import RDBStorage

HEARTBEAT_S = 15
STALE_AFTER_S = 120  # a worker elsewhere that was silent so long is gone
MAX_RETRIES = 3

_SQLITE = "sqlite:///"
_POSTGRESQL = re.compile(r"^postgres(ql)?(\+\w+)?://")
_LOCK_TIMEOUT_S = 300


class StorageError(ProjectError):
    """The study's database can't be used."""


def storage_url(given: str | None) -> str:
    """The database's URL for SQLAlchemy; None means ``tune.db`` at the project's root.

    Raises
    ------
    StorageError
        It is neither SQLite nor PostgreSQL.
    """
    if given is None:
        return f"{_SQLITE}{paths.TUNE_DB}"
    if given.startswith(_SQLITE):
        return given
    if _POSTGRESQL.match(given):
        return _POSTGRESQL.sub("postgresql+psycopg://", given)
    raise StorageError(
        f"storage must be sqlite:///FILE or postgresql://USER@HOST/DATABASE (got {shown(given)})"
    )


def shown(url: str) -> str:
    """A URL without user and password."""
    return re.sub(r"://[^/@\s]+@", "://", url)


def open_storage(url: str) -> "RDBStorage":
    """Open the database; the first caller creates its tables, others wait.

    Trials whose worker fell silent are tried again, at most three times.

    Raises
    ------
    StorageError
        It can't be reached, or the driver for PostgreSQL isn't installed.
    """
    from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback

    _quieten()
    with reporting(url), locked(url):
        return RDBStorage(
            url,
            engine_kwargs=_engine_options(url),
            heartbeat_interval=HEARTBEAT_S,
            grace_period=STALE_AFTER_S,
            heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(max_retry=MAX_RETRIES),
        )


def _engine_options(url: str) -> dict[str, Any]:
    """How SQLAlchemy connects: waits for SQLite's lock; leaves no PostgreSQL connection idle.

    A pool would keep connections open until the process ends, however long a trial trains.
    """
    from sqlalchemy import NullPool

    if url.startswith(_SQLITE):
        return {"connect_args": {"timeout": 60}}
    return {"poolclass": NullPool}


def open_study(
    storage: "RDBStorage", name: str, *, url: str, higher_is_better: bool, **parts: Any
) -> "optuna.Study":
    """The study of this name, created if it isn't there; ``parts`` are its sampler and pruner."""
    import optuna

    with reporting(url), locked(url):
        return optuna.create_study(
            storage=storage,
            study_name=name,
            direction="maximize" if higher_is_better else "minimize",
            load_if_exists=True,
            **parts,
        )


@contextmanager
def locked(url: str) -> Iterator[Callable[[], None]]:
    """Hold the database's lock, on this host (SQLite) or on all (PostgreSQL).

    Yields a function that lets go of it early.
    """
    acquire = _file_lock if url.startswith(_SQLITE) else _advisory_lock
    release = acquire(url)
    try:
        yield release
    finally:
        release()


def _file_lock(url: str) -> Callable[[], None]:
    from filelock import FileLock

    paths.TUNE_LOCKS.mkdir(parents=True, exist_ok=True)
    name = hashlib.sha256(url.encode()).hexdigest()[:32]
    lock = FileLock(paths.TUNE_LOCKS / f"{name}.lock", timeout=_LOCK_TIMEOUT_S)
    lock.acquire()

    def release() -> None:
        lock.release()

    return release


def _advisory_lock(url: str) -> Callable[[], None]:
    """A lock of the server, let go when the connection ends: a killed process can't keep it."""
    import sqlalchemy

    engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool)
    connection = engine.connect()
    connection.execute(sqlalchemy.text("SELECT pg_advisory_lock(hashtext('hcd.tune'))"))

    def release() -> None:
        connection.close()  # again is harmless

    return release


@contextmanager
def reporting(url: str) -> Iterator[None]:
    """Turn what the database raises into one line that names it and the way out."""
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (SQLAlchemyError, OSError, ModuleNotFoundError) as error:
        cause = shown(" ".join(str(getattr(error, "orig", error)).split())[:200])
        driver = isinstance(error, ModuleNotFoundError)
        way_out = "pip install 'psycopg[binary]'" if driver else "start it, or check --storage"
        raise StorageError(
            f"study storage {shown(url)} can't be used: {cause}; {way_out}"
        ) from error


def _quieten() -> None:
    import warnings

    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
