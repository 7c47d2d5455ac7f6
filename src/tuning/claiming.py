"""Claiming a study's trials one after another, beside other processes that do the same."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from src.params import TuneParams
from src.tuning import budget, space
from src.tuning.storage import locked
from src.tuning.study import sampler

if TYPE_CHECKING:
    import optuna

RunTrial = Callable[["optuna.Trial", dict[str, Any]], float]

_LOOK_EVERY_S = 1.0


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
            _find_dead(study)
            trials = study.get_trials(deepcopy=False)
            move = budget.next_move(trials, n_trials)
            if move == "stop":
                break
            if move == "claim":
                study.sampler = sampler(tune, n_trials_before=len(trials))
                study.optimize(_objective(tune, run, release), n_trials=1, catch=(Exception,))
                n_run += 1
                continue
        time.sleep(_LOOK_EVERY_S)
    return n_run


def _objective(
    tune: TuneParams, run: RunTrial, release: Callable[[], None]
) -> "Callable[[optuna.Trial], float]":
    def objective(trial: "optuna.Trial") -> float:
        budget.sign(trial)
        values = space.draw(trial, tune.space)
        release()
        return run(trial, values)

    return objective


def _find_dead(study: "optuna.Study") -> None:
    import optuna

    budget.bury_dead(study)
    optuna.storages.fail_stale_trials(study)  # those of other hosts, by their heartbeat
