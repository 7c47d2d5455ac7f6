"""Claiming a study's trials one after another, beside other processes that do the same.

Whoever claims a trial holds the database's lock from the count until the trial says which process
runs it, so that no two workers claim the last one, and a trial that runs without saying whose it is
was left by a killed worker.
"""

import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from src.params import TuneParams
from src.system.errors import ProjectError
from src.system.log import get_logger
from src.tuning import budget, space
from src.tuning.retrying import settle
from src.tuning.storage import locked
from src.tuning.study import sampler

if TYPE_CHECKING:
    import optuna

RunTrial = Callable[["optuna.Trial", dict[str, Any]], float]

_LOOK_EVERY_S = 1.0
_LONGEST_REASON = 300


def claim_and_run(
    study: "optuna.Study",
    url: str,
    tune: TuneParams,
    *,
    n_trials: int,
    run: RunTrial,
    is_over: Callable[[], bool],
    at_most: int,
) -> int:
    """Run trials until the budget is spent, ``is_over``, or ``at_most`` were run; how many were.

    ``run`` is given a trial and its values and returns its score; what it raises is a failed trial,
    ``optuna.TrialPruned`` a pruned one. While others run what is left of the budget this waits: one
    of theirs may fail.
    """
    n_run = 0
    while n_run < at_most and not is_over():
        with locked(url) as release:
            settle(study)
            trials = study.get_trials(deepcopy=False)
            move = budget.next_move(trials, n_trials)
            if move == "stop":
                break
            if move == "claim":
                study.sampler = sampler(tune, n_trials_before=len(trials))
                _Claim(study, tune, run, release).optimize()
                n_run += 1
                continue
        time.sleep(_LOOK_EVERY_S)
    return n_run


class _Claim:
    """One trial, from Optuna's draw to its end."""

    def __init__(
        self, study: "optuna.Study", tune: TuneParams, run: RunTrial, release: Callable[[], None]
    ) -> None:
        self._study, self._tune, self._run, self._release = study, tune, run, release
        self._number: int | None = None

    def optimize(self) -> None:
        """Draw and run; what fails is the trial's affair, what the database raises is passed on."""
        try:
            self._study.optimize(self._objective, n_trials=1, catch=(Exception,))
        except Exception:
            # a worker that was silent too long is taken for dead: its trial is ended and tried
            # again, and Optuna doesn't take a second end
            if self._number is None or not self._is_ended(self._number):
                raise
            get_logger("tune").warning(
                f"trial {self._number} was taken for dead meanwhile; its stand-in counts"
            )

    def _is_ended(self, number: int) -> bool:
        return self._study.get_trials(deepcopy=False)[number].state.is_finished()

    def _objective(self, trial: "optuna.Trial") -> float:
        import optuna

        self._number = trial.number
        try:
            budget.sign(trial)
            values = space.draw(trial, self._tune.space)
            self._release()
            return _number(self._run(trial, values))
        except optuna.TrialPruned:
            raise
        except Exception as error:
            # without a reason it would pass for the death of its worker, and be run again
            trial.set_user_attr(budget.REASON, reason_of(error))
            raise


def _number(score: float) -> float:
    if not math.isfinite(score):
        raise ValueError(f"the score is {score}, not a finite number")
    return score


def reason_of(error: Exception) -> str:
    """Why a trial failed, in one line."""
    text = " ".join(str(error).split())[:_LONGEST_REASON]
    if isinstance(error, ProjectError):
        return text
    if isinstance(error, MemoryError) or type(error).__name__ == "ResourceExhaustedError":
        return f"out of memory: {text}; fewer --workers, or lower finetune.batch_size"
    return f"{type(error).__name__}: {text}"
