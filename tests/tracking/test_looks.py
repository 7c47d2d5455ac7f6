"""Looks at an archive: counted once a model, over every run of the store, deleted ones included."""

import uuid

import pytest

from src.tracking import runs
from src.tracking.looks import n_looks, take_look
from tests.tracking.support import record

pytest_plugins = ("tests.tracking.fixtures",)


@pytest.fixture
def new_run(store):  # noqa: ARG001
    def new_run() -> str:
        with runs.training_run(record(), fresh=True) as run:
            return run.run_id

    return new_run


@pytest.fixture
def digest():
    """Of an archive that nobody looked at."""
    return uuid.uuid4().hex * 2


def test_every_model_is_a_look_and_none_is_two(new_run, digest):
    """Catches looks counted by evaluation, so that a second `dvc repro` makes the verdict harder,
    and models that share a number, so that the best of twenty is judged as if it were alone."""
    first, second = new_run(), new_run()
    assert take_look(first, digest, "a" * 64) == 1
    assert take_look(second, digest, "b" * 64) == 2
    assert take_look(first, digest, "a" * 64) == 1
    assert take_look(second, digest, "b" * 64) == 2
    assert n_looks(digest) == 2


def test_the_same_model_trained_again_takes_no_look(new_run, digest):
    """Catches looks counted by run: the same weights tell nothing new of a holdout."""
    assert [take_look(new_run(), digest, "a" * 64) for _ in range(2)] == [1, 1]
    assert n_looks(digest) == 1


def test_two_models_of_one_run_keep_their_numbers(new_run, digest):
    """Catches the look without test-time augmentation forgotten where the one with it is noted."""
    run_id = new_run()
    models = ("a" * 64, "a" * 64 + "+tta")
    assert [take_look(run_id, digest, model) for model in models * 2] == [1, 2, 1, 2]
    assert n_looks(digest) == 2
    assert take_look(new_run(), digest, "b" * 64) == 3


def test_looks_of_deleted_runs_count(store, new_run, digest):
    """Catches a gate that forgets its failures once a person deletes them in MLflow."""
    failed = new_run()
    take_look(failed, digest, "a" * 64)
    store.client.delete_run(failed)
    assert n_looks(digest) == 1
    assert take_look(new_run(), digest, "b" * 64) == 2
    assert take_look(new_run(), digest, "a" * 64) == 1


def test_version_of_a_deleted_run_is_judged_all_the_same(store, new_run, digest):
    """Catches a version that nobody can promote because its run was deleted."""
    judged, same_model = new_run(), new_run()
    take_look(judged, digest, "a" * 64)
    for run_id in (judged, same_model):
        store.client.delete_run(run_id)
        assert take_look(run_id, digest, "a" * 64) == 1


def test_another_archive_starts_anew(new_run, digest):
    """Catches new patches that inherit the strictness of old ones."""
    run_id, other = new_run(), uuid.uuid4().hex * 2
    take_look(run_id, digest, "a" * 64)
    assert take_look(new_run(), digest, "b" * 64) == 2
    assert take_look(run_id, other, "a" * 64) == 1
    assert (n_looks(digest), n_looks(other)) == (2, 1)


def test_looks_on_more_than_one_page_count(store, new_run, digest, monkeypatch):
    """Catches a count that stops where MLflow's page does."""
    for model in "abc":
        take_look(new_run(), digest, model)
    search, store = store.client.search_runs, store.client
    monkeypatch.setattr(
        type(store),
        "search_runs",
        lambda _, *args, **more: search(*args, **{**more, "max_results": 2}),
    )
    assert n_looks(digest) == 3
