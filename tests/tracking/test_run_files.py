"""Files added to a run that has ended."""

import pytest

from src.tracking.run_files import add_files
from src.tracking.store import TrackingError

pytest_plugins = ("tests.tracking.fixtures",)


def test_files_are_artifacts_of_the_run(store, tmp_path):
    """A report that can't be opened from the run it describes."""
    run_id = store.client.create_run(store.experiment_id).info.run_id
    store.client.set_terminated(run_id)
    page = tmp_path / "index.html"
    page.write_text("<p>report</p>")
    add_files(run_id, [page], "report")
    assert [a.path for a in store.client.list_artifacts(run_id, "report")] == ["report/index.html"]


def test_unknown_run_is_one_line(store, tmp_path):  # noqa: ARG001
    page = tmp_path / "index.html"
    page.write_text("x")
    with pytest.raises(TrackingError, match="did not take files of run"):
        add_files("f" * 32, [page], "report")
