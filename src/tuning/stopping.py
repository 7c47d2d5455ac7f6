"""SIGTERM as a request to stop: at once where a trial computes, at the next look elsewhere."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import parent_process
from types import FrameType

_LAST_WORDS_S = 60


class Stopped(BaseException):
    """A trial is to end now. Not an Exception: no handler of errors may swallow it."""


class StopSignal:
    """Whether this worker was asked to stop, by SIGTERM or by the end of its parent."""

    def __init__(self) -> None:
        self.is_set = False
        self._may_raise = False

    def install(self) -> None:
        """Take SIGTERM, leave Ctrl-C to the parent, and watch the parent."""
        signal.signal(signal.SIGTERM, self._take)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        stop_with_parent()

    def _take(self, signum: int, frame: FrameType | None) -> None:  # noqa: ARG002
        self.is_set = True
        if self._may_raise:
            self._may_raise = False
            raise Stopped

    @contextmanager
    def interrupting(self) -> Iterator[None]:
        """Inside, a request to stop raises :class:`Stopped` at once."""
        if self.is_set:
            raise Stopped
        self._may_raise = True
        try:
            yield
        finally:
            self._may_raise = False

    @contextmanager
    def deferring(self) -> Iterator[None]:
        """Inside, a request waits until the block is left: a database is being written."""
        may_raise, self._may_raise = self._may_raise, False
        yield
        self._may_raise = may_raise
        if may_raise and self.is_set:
            self._may_raise = False
            raise Stopped


def stop_with_parent() -> None:
    """Send this process SIGTERM when its parent is gone, and end it a minute later."""
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    parent = parent_process()
    if parent is None:
        return
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_LAST_WORDS_S)
    os._exit(1)  # it didn't listen
