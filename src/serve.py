"""The champion on MLflow's own server, and what that server asks for answers.

Every version's ``MLmodel`` names this module as its loader. The server imports it from the folder
it starts in, the project's root: no code that lies with a model is run, and nothing is loaded
before it is verified.
"""

from __future__ import annotations

import base64
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from src import paths
from src.data.images import decode_image
from src.params import load_params
from src.patch import SHAPE
from src.system.cli import run
from src.system.determinism import start_scoring
from src.system.errors import ProjectError

MAX_PATCHES = 1024
_EXPECTED = (
    f"expected 1 to {MAX_PATCHES:,} patches under 'inputs' or in one column: pixels (n, 96, 96, 3) "
    "of whole numbers 0 to 255, or base64 of TIFF or PNG files"
)


class ServeError(ProjectError):
    """There is nothing to serve, or a request can't be answered."""


def main(port: Annotated[int, typer.Option(min=1, max=65_535)] = 5001) -> None:
    """Verify the champion, then become: mlflow models serve, for this machine only."""
    from src.tracking.registry import champion_of
    from src.tracking.store import tracking_uri

    version = champion_of(load_params().register_.name)
    if version is None:
        raise ServeError("there is no champion; run: dvc repro, or python -m src.promote")
    version.verify()  # MLflow imports what MLmodel names before any code of ours could look at it
    # by number: an alias that moves meanwhile would serve files that weren't looked at
    model = f"models:/{version.name}/{version.number}"
    serve = ["mlflow", "models", "serve", "-m", model, "--env-manager", "local", "-p", str(port)]
    programs = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    changes = {"MLFLOW_TRACKING_URI": tracking_uri(), "PATH": programs}  # it starts uvicorn by name
    os.chdir(paths.ROOT)
    os.execve(sys.executable, [sys.executable, "-m", *serve], {**os.environ, **changes})


class ServedClassifier:
    """What MLflow asks for predictions; ``refusal`` makes the error it answers with."""

    def __init__(self, scorer: Any, refusal: Any, *, batch_size: int) -> None:
        self._scorer, self._refusal, self._batch_size = scorer, refusal, batch_size

    def predict(self, data: Any) -> list[dict[str, Any]]:
        """One ``{"probability": …, "decision": …}`` per patch, in order; or status 400 or 500."""
        pixels = None
        try:
            pixels = patches_of(data)
            n_batches = -(-len(pixels) // self._batch_size)
            parts = map(self._scorer.probabilities, np.array_split(pixels, n_batches))
            probabilities = np.concatenate(list(parts))
        except ProjectError as error:
            raise self._refusal(str(error), is_request_at_fault=pixels is None) from error
        answers = zip(probabilities, self._scorer.decisions(probabilities), strict=True)
        return [{"probability": float(p), "decision": decision} for p, decision in answers]


def _load_pyfunc(path: str) -> ServedClassifier:
    """MLflow's entry point: verify the version whose files lie in ``path``, then load it."""
    runtime = load_params().runtime
    start_scoring(runtime)
    from src.model.scorer import Scorer
    from src.tracking.registry import version_in
    from src.tracking.store import refusal

    scorer = Scorer(version_in(Path(path)))
    return ServedClassifier(scorer, refusal, batch_size=runtime.inference_batch_size)


def patches_of(data: Any) -> NDArray[np.uint8]:
    """The patches (n, 96, 96, 3) of a request: an array or list, or a table of one column."""
    if hasattr(data, "keys"):  # a mapping or a data frame
        columns = list(data.keys())
        if len(columns) != 1:
            raise ServeError(f"got columns {', '.join(map(str, columns)) or 'none'}; {_EXPECTED}")
        data = data[columns[0]]
    items = list(data)
    if not 0 < len(items) <= MAX_PATCHES:
        raise ServeError(f"{len(items):,} patches in one request; {_EXPECTED}")
    try:
        if all(isinstance(item, str) for item in items):
            items = [decode_image(base64.b64decode(item, validate=True)) for item in items]
        pixels = np.array(items)
    except ValueError as error:  # no base64, or patches of different shapes
        raise ServeError(f"{error}; {_EXPECTED}") from error
    # scaled pixels would be answered, and wrongly
    if pixels.shape[1:] != SHAPE or pixels.dtype.kind not in "iu":
        raise ServeError(f"pixels are {pixels.dtype} of shape {pixels.shape}; {_EXPECTED}")
    if pixels.min() < 0 or pixels.max() > 255:
        raise ServeError(f"pixels from {pixels.min()} to {pixels.max()}; {_EXPECTED}")
    return pixels.astype(np.uint8)


if __name__ == "__main__":
    run(main)
