"""Serve the champion with MLflow's own server, once its files are verified.

``mlflow models serve`` reads a model's ``MLmodel`` and imports what stands there before any code of
ours could look at it. Here every file is compared with the registry first.
"""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from src import paths
from src.params import load_params
from src.system.cli import run
from src.system.errors import ProjectError
from src.system.log import configure, get_logger


class ServeError(ProjectError):
    """There is nothing to serve."""


def main(
    port: Annotated[int, typer.Option(min=1, max=65_535)] = 5001,
    host: Annotated[str, typer.Option(help="127.0.0.1: this machine only")] = "127.0.0.1",
) -> None:
    """Verify the champion, then become: mlflow models serve -m models:/<name>/<version>."""
    from src.tracking.registry import champion_version, verify_version
    from src.tracking.store import tracking_uri

    params = load_params()
    configure(params.runtime.verbosity)
    name = params.register_.name
    version = champion_version(name)
    if version is None:
        raise ServeError(
            f"no champion of {name} stands; run: dvc repro, or promote a version: "
            "python -m src.promote"
        )
    verify_version(name, version)
    get_logger("serve").info(f"{name} version {version} (champion): files verified")
    # by number: an alias that moves meanwhile would serve files that weren't looked at
    serve = ["-m", "mlflow", "models", "serve", "-m", f"models:/{name}/{version}"]
    options = ["--env-manager", "local", "--host", host, "--port", str(port)]
    os.chdir(paths.ROOT)  # the server imports src.serving from here
    os.execve(sys.executable, [sys.executable, *serve, *options], environment(tracking_uri()))


def environment(store: str) -> dict[str, str]:
    """This process's variables, with the store and the folder of this Python's programs."""
    programs = str(Path(sys.executable).parent)
    changes = {
        "MLFLOW_TRACKING_URI": store,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        # the server starts uvicorn by name
        "PATH": os.pathsep.join([programs, os.environ.get("PATH", "")]),
    }
    return {**os.environ, **changes}


if __name__ == "__main__":
    run(main)
