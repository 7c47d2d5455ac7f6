"""How every command starts and ends.

``python -m src.<stage>`` calls :func:`run` with its ``main``. A :class:`ProjectError` ends in one
line on stderr and exit code 1; Ctrl-C in exit code 130 (typer's doing), SIGTERM in 143; a defect
keeps its traceback.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

import typer

from src.system.errors import ProjectError


def run(main: Callable[..., None]) -> None:
    """Run ``main`` as a typer command; its docstring is the help text."""
    before = signal.signal(signal.SIGTERM, _exit_on_sigterm)
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    try:
        app()
    except ProjectError as error:
        sys.exit("error: " + " ".join(str(error).split()))  # one line, on stderr
    finally:
        signal.signal(signal.SIGTERM, before)


def _exit_on_sigterm(signum: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001
    # an exception, so that half-written files are cleared away on the way out
    sys.exit(128 + signum)
