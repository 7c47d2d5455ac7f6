"""A stage that kills itself: ``python -m tests.faults.dying <point> <stage>`` in a project's root.

Every point is a real ``kill -9`` at a moment that matters, reached by running the real stage.
"""

import os
import signal
import sys
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
    from src.model.activations import ActivationFile

    _at_call(ActivationFile, "_write_ledger", 2)


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
        _at_call(durable, "_fsync_file", number, if_checkpoint)


def _after_a_checkpoint_within_an_epoch() -> None:
    from src.model.loop import Training

    _at_call(Training, "_step", 5)


def _after_an_epoch_before_it_is_logged() -> None:
    from src.tracking.runs import TrainingRun

    _at_call(TrainingRun, "_send", 3)


def _after_the_last_epoch() -> None:
    from src.model import saving

    _at_call(saving, "save_phase", 1)


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


if __name__ == "__main__":
    point, stage = sys.argv[1:]
    POINTS[point]()
    sys.argv = [stage]
    run_module(f"src.{stage}", run_name="__main__")
