"""Where a study is kept: one database, one lock, and errors in one line."""

import optuna
import pytest

from src import paths
from src.tuning.storage import StorageError, locked, reporting, storage_url


def test_one_file_is_one_database_however_it_is_named(tmp_path, monkeypatch):
    """Catches two locks for one database: two workers then claim the last trial."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(paths, "TUNE_DB", tmp_path / "tune.db")
    whole = f"sqlite:///{tmp_path / 'tune.db'}"
    assert storage_url("sqlite:///tune.db") == storage_url(whole) == storage_url(None)
    (tmp_path / "link").symlink_to(tmp_path)
    assert storage_url("sqlite:///link/tune.db") == whole
    with locked(whole):
        assert (tmp_path / "tune.db.lock").exists()


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("sqlite:///:memory:", "must name a file"),
        ("sqlite:///", "must name a file"),
        ("sqlite:///file:x?mode=memory&uri=true", "must name a file"),
        ("sqlite:////nowhere/at/all/tune.db", "there is no folder /nowhere/at/all"),
    ],
)
def test_what_workers_cannot_share_is_refused(url, said):
    """Catches a database of each worker's own, and a folder that is made by a slip of the pen."""
    with pytest.raises(StorageError) as refused:
        storage_url(url)
    assert said in str(refused.value)


def test_a_database_that_goes_away_later_is_one_line():
    """Catches Optuna's own error, in the middle of a search, as a page of traceback."""
    with pytest.raises(StorageError) as refused, reporting("postgresql+psycopg://me:pw@host/db"):
        raise optuna.exceptions.StorageInternalError("server closed the connection")
    assert "server closed the connection" in str(refused.value)
    assert "pw" not in str(refused.value)


def test_other_errors_are_not_the_storages():
    """Catches a full disk, or a package that is missing elsewhere, reported as the database's."""
    for error in (OSError("No space left on device"), ModuleNotFoundError(name="plotly")):
        with pytest.raises(type(error)), reporting("sqlite:///x.db"):
            raise error
