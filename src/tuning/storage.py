"""Where studies are kept: SQLite by default, PostgreSQL by URL; created once, locked for claims."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from src import paths
from src.system.errors import ProjectError

if TYPE_CHECKING:
    import optuna
    from optuna.storages import RDBStorage

HEARTBEAT_S = 15
STALE_AFTER_S = 120  # a worker elsewhere that was silent so long is gone

_SQLITE = "sqlite:///"
_POSTGRESQL = re.compile(r"^postgres(ql)?(\+\w+)?://")
_LOCK_TIMEOUT_S = 300


class StorageError(ProjectError):
    """The study's database can't be used."""


def storage_url(given: str | None) -> str:
    """The database's URL for SQLAlchemy; None means ``tune.db`` at the project's root.

    A SQLite file is named by its whole path, however it was given: one database, one URL.

    Raises
    ------
    StorageError
        It is neither a SQLite file nor PostgreSQL.
    """
    if given is None:
        return f"{_SQLITE}{paths.TUNE_DB}"
    if given.startswith(_SQLITE):
        return f"{_SQLITE}{_file_of(given).resolve()}"
    if _POSTGRESQL.match(given):
        return _POSTGRESQL.sub("postgresql+psycopg://", given)
    raise StorageError(
        f"storage must be sqlite:///FILE or postgresql://USER@HOST/DATABASE (got {shown(given)})"
    )


def _file_of(url: str) -> Path:
    """The file of a SQLite database."""
    name = url.removeprefix(_SQLITE)
    if not name or name.startswith((":", "file:")) or "?" in name:
        raise StorageError(
            f"storage {url} must name a file that all workers open, as in sqlite:///studies.db"
        )
    path = Path(name)
    if not path.parent.is_dir():
        raise StorageError(
            f"storage {url}: there is no folder {path.parent.resolve()}; create it, or check "
            "--storage"
        )
    return path


def shown(url: str) -> str:
    """A URL without user and password."""
    return re.sub(r"://[^/@\s]+@", "://", url)


def open_storage(url: str) -> "RDBStorage":
    """Open the database; the first caller creates its tables, others wait.

    Raises
    ------
    StorageError
        It can't be reached, or the driver for PostgreSQL isn't installed.
    """
    from optuna.storages import RDBStorage

    _quieten()
    with reporting(url), locked(url):
        return RDBStorage(
            url,
            engine_kwargs=_engine_options(url),
            heartbeat_interval=HEARTBEAT_S,
            grace_period=STALE_AFTER_S,
        )


def _engine_options(url: str) -> dict[str, Any]:
    """How SQLAlchemy connects: waits for SQLite's lock, and leaves no connection idle.

    A pool would keep connections open until the process ends, however long a trial trains.
    """
    from sqlalchemy import NullPool

    options: dict[str, Any] = {"poolclass": NullPool}
    return {**options, "connect_args": {"timeout": 60}} if url.startswith(_SQLITE) else options


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
    """A lock beside the database: who opens the same file takes the same lock."""
    from filelock import FileLock

    lock = FileLock(f"{_file_of(url)}.lock", timeout=_LOCK_TIMEOUT_S)
    try:
        lock.acquire()
    except OSError as error:  # not writable, or held for minutes
        raise StorageError(
            f"study storage {url} can't be locked: {error}; check --storage, or end the process "
            "that holds it"
        ) from error

    def release() -> None:
        lock.release()

    return release


def _advisory_lock(url: str) -> Callable[[], None]:
    """A lock of the server, let go when the connection ends: a killed process can't keep it."""
    import sqlalchemy

    engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool)
    connection = engine.connect()
    try:
        connection.execute(sqlalchemy.text("SELECT pg_advisory_lock(hashtext('hcd.tune'))"))
    except BaseException:
        connection.close()
        raise

    def release() -> None:
        connection.close()  # again is harmless

    return release


@contextmanager
def reporting(url: str) -> Iterator[None]:
    """Turn what the database raises into one line that names it and the way out."""
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except ModuleNotFoundError as error:
        if error.name != "psycopg":
            raise
        raise _unusable(url, error, "pip install 'psycopg[binary]'") from error
    except (SQLAlchemyError, StorageInternalError) as error:
        raise _unusable(url, error, "start it, or check --storage") from error


def _unusable(url: str, error: Exception, way_out: str) -> StorageError:
    # Optuna wraps SQLAlchemy's error, which wraps the driver's: that one says what is wrong
    source = error.__cause__ or error
    cause = shown(" ".join(str(getattr(source, "orig", source)).split())[:200])
    return StorageError(f"study storage {shown(url)} can't be used: {cause}; {way_out}")


def _quieten() -> None:
    import warnings

    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
