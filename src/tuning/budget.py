"""What a study still needs: where each trial stands, and whether another one may begin."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Literal

from src.tracking.lifecycle import this_process

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

Move = Literal["claim", "wait", "stop"]

PROCESS = "process"
REASON = "reason"
RETRY_OF = "retry_of"  # the trial that this one stands in for
N_DEATHS = "n_deaths"  # workers that died of these values before this trial

STOPPED = "stopped by hand; tried again"
MOST_DEATHS = 4  # of workers with the same values, before they are given up


def count(trials: "Sequence[FrozenTrial]") -> Counter[str]:
    """Trials by state: ``complete``, ``pruned``, ``running``, ``waiting``, ``failed``, ``retried``.

    ``retried`` are those whose worker was stopped or killed: another trial stands in for them.
    """
    return Counter(state_of(trial) for trial in trials)


def state_of(trial: "FrozenTrial") -> str:
    """One word for where a trial stands."""
    name = trial.state.name.lower()
    if name != "fail":
        return name
    return "retried" if why_failed(trial) in (None, STOPPED) else "failed"


def why_failed(trial: "FrozenTrial") -> str | None:
    """Why a trial failed; None where it didn't, or its worker died and it is tried again."""
    n = n_deaths(trial)
    if _is_lost(trial) and n >= MOST_DEATHS:
        return f"its worker died {n} times; out of memory? fewer --workers, or lower batch_size"
    reason: str | None = trial.user_attrs.get(REASON)
    return reason


def n_deaths(trial: "FrozenTrial") -> int:
    """Workers that died running these values, in this trial and in those it stands in for."""
    return int(trial.user_attrs.get(N_DEATHS, 0)) + _is_lost(trial)


def _is_lost(trial: "FrozenTrial") -> bool:
    """Whether it ended without a word: every failure has a reason but the death of the worker."""
    return trial.state.name == "FAIL" and REASON not in trial.user_attrs


def retry_of(trial: "FrozenTrial") -> int | None:
    """The number of the trial that this one stands in for."""
    number: int | None = trial.user_attrs.get(RETRY_OF)
    return number


def n_counted(trials: "Sequence[FrozenTrial]") -> int:
    """Trials that count towards the budget: complete and pruned ones."""
    counts = count(trials)
    return counts["complete"] + counts["pruned"]


def n_ended(trials: "Sequence[FrozenTrial]") -> int:
    """Trials that are over for good: counted and failed ones."""
    return n_counted(trials) + count(trials)["failed"]


def is_spent(trials: "Sequence[FrozenTrial]", n_trials: int) -> bool:
    """Whether a study ends: the budget is full, or as many trials failed as it has room for."""
    return n_counted(trials) >= n_trials or count(trials)["failed"] >= n_trials


def next_move(trials: "Sequence[FrozenTrial]", n_trials: int) -> Move:
    """What a free worker does: claim a trial, wait for those that run, or stop."""
    if is_spent(trials, n_trials):
        return "stop"
    may_count = n_counted(trials) + count(trials)["running"]
    return "wait" if may_count >= n_trials else "claim"


def sign(trial: "optuna.Trial") -> None:
    """Write into a trial which process runs it."""
    trial.set_user_attr(PROCESS, asdict(this_process()))
