"""How every command starts and ends.

``python -m src.<stage>`` calls :func:`run` with its ``main``. A :class:`ProjectError` ends in one
line on stderr and exit code 1; Ctrl-C in exit code 130; a defect keeps its traceback.
"""

import sys
from collections.abc import Callable

import typer

from src.system.errors import ProjectError


def run(main: Callable[..., None]) -> None:
    """Run ``main`` as a typer command; its docstring is the help text."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    try:
        app()
    except ProjectError as error:
        sys.exit(_one_line(str(error)))
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(130)


def _one_line(text: str) -> str:
    return "error: " + " ".join(text.split())
