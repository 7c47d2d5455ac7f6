"""Stages that kill themselves: ``python -m tests.faults.dying`` in a project's root.

Every point is a real ``kill -9`` at a moment that matters, reached by running the real stage in a
process of its own. That process is forked from this one, which has imported TensorFlow and MLflow
once (four of the six seconds that a small stage takes) and started nothing: one line in, a point
(or ``""``) and a stage with its arguments as JSON; one line out, its exit status (negative: the
signal) and what it printed.
"""

import json
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from runpy import run_module
from typing import Any, NoReturn


def die(*_: Any, **__: Any) -> NoReturn:
    """What a power cut does."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("still alive")


def _at_call(owner: Any, name: str, number: int, then: Callable[..., None] = die) -> None:
    """Replace ``owner.name``: the call with this number, counted from 1, ends in ``then``."""
    real, calls = getattr(owner, name), []

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == number:
            then(*args, **kwargs)
        return real(*args, **kwargs)

    setattr(owner, name, counted)


def _in_cache_fill() -> None:
    from src.model.activations import Blocks

    _at_call(Blocks, "write", 3)


def _before_the_first_checkpoint() -> None:
    from src.model.checkpoint import Checkpoint

    _at_call(Checkpoint, "save", 1)


def _in_a_checkpoint() -> None:
    from src.model import checkpoint

    def half(archive: Any, *_: Any) -> None:
        archive.fp.flush()
        die()

    _at_call(checkpoint, "_write", 100, half)


def _between_write_and_rename() -> None:
    from src.system import durable

    def if_checkpoint(path: Any) -> None:
        if ".npz." in path.name:
            die()

    for number in range(1, 40):
        _at_call(durable, "_fsync", number, if_checkpoint)


def _after_a_checkpoint_within_an_epoch() -> None:
    from src.model.training import Training

    _at_call(Training, "_step", 5)


def _after_an_epoch_before_it_is_logged() -> None:
    from src.tracking.runs import TrainingRun

    _at_call(TrainingRun, "_send", 3)


def _after_the_last_epoch() -> None:
    from src.model import training

    _at_call(training, "save_phase", 1)


def _in_the_upload_of_the_model() -> None:
    from mlflow import MlflowClient

    _at_call(MlflowClient, "log_model_artifacts", 1)


def _before_the_run_is_ended() -> None:
    from mlflow import MlflowClient

    _at_call(MlflowClient, "set_terminated", 1)


POINTS = {
    "in cache fill": _in_cache_fill,
    "before the first checkpoint": _before_the_first_checkpoint,
    "in a checkpoint": _in_a_checkpoint,
    "between write and rename": _between_write_and_rename,
    "within an epoch": _after_a_checkpoint_within_an_epoch,
    "before an epoch is logged": _after_an_epoch_before_it_is_logged,
    "after the last epoch": _after_the_last_epoch,
    "in the upload of the model": _in_the_upload_of_the_model,
    "before the run is ended": _before_the_run_is_ended,
}


def serve() -> None:
    """Run what is asked for, one at a time, until the input ends."""
    _import_what_is_slow()
    for line in sys.stdin:
        point, *command = json.loads(line)
        with tempfile.TemporaryFile("w+") as output:
            child = os.fork()
            if child == 0:
                _run(point, command, output.fileno())
            _, status = os.waitpid(child, 0)
            output.seek(0)
            answer = [os.waitstatus_to_exitcode(status), output.read()]
        print(json.dumps(answer), flush=True)


def _import_what_is_slow() -> None:
    from src.params import load_params
    from src.system import determinism

    os.environ["KERAS_BACKEND"] = "tensorflow"
    os.environ[determinism._ONEDNN] = "1"
    if load_params().runtime.quiet_tensorflow:
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    import keras  # noqa: F401
    import matplotlib.pyplot as plt  # noqa: F401
    import mlflow.keras  # noqa: F401
    import pandas as pd  # noqa: F401
    import sklearn.metrics  # noqa: F401


def _run(point: str, command: list[str], output: int) -> NoReturn:
    """In the forked process: what ``python -m src.<stage> …`` does, up to the point."""
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.stdin.close()
    status = 1
    try:
        if point:
            POINTS[point]()
        sys.argv = command
        run_module(f"src.{command[0]}", run_name="__main__")
        status = 0
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        status = end.code if isinstance(end.code, int) else 1 if end.code else 0
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    serve()
