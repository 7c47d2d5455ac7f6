"""One line of log per fact, on stdout: ``split: train 168,230 patches from 151 slides``.

stderr is kept for the one line of a failed command.
"""

from __future__ import annotations

import logging
import sys


def get_logger(stage: str) -> logging.Logger:
    """The logger whose lines begin with ``stage:``."""
    return logging.getLogger(f"hcd.{stage}")


def configure(verbosity: str) -> None:
    """Send every logger of :func:`get_logger` to stdout at ``verbosity`` (a ``logging`` level)."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(_StageFormatter())
    root = logging.getLogger("hcd")
    root.handlers[:] = [handler]
    root.setLevel(verbosity.upper())
    root.propagate = False


class _StageFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        stage = record.name.removeprefix("hcd.")
        level = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
        return f"{stage}: {level}{record.getMessage()}"
