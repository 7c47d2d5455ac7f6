"""What holds in every test."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from src import paths


@pytest.fixture(scope="session", autouse=True)
def _cache_apart(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Locks and unpacked files of tests in a folder of their own, not in the project's .cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paths, "CACHE", tmp_path_factory.mktemp("cache"))
        yield paths.CACHE


@pytest.fixture
def hears_ctrl_c() -> Iterator[None]:
    """What is started inside hears Ctrl-C, in a script's background job too: there the shell has
    SIGINT ignored, and that is inherited."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
