"""What a study still needs: counting, claiming the next trial, and finding the dead.

Whoever claims a trial holds the database's lock from the count until the trial says which process
runs it, so that no two workers claim the last one, and a trial that runs without saying whose it is
was left by a killed worker.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal

from src.tracking.processes import ProcessIdentity, is_known_dead, this_process
from src.tuning.storage import MAX_RETRIES

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

Move = Literal["claim", "wait", "stop"]

PROCESS = "process"
REASON = "reason"
STOPPED = "stopped by hand; tried again"


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
    reason = trial.user_attrs.get(REASON)
    return "retried" if reason in (None, STOPPED) else "failed"


def n_counted(trials: "Sequence[FrozenTrial]") -> int:
    """Trials that count towards the budget: complete and pruned ones."""
    counts = count(trials)
    return counts["complete"] + counts["pruned"]


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


def bury_dead(study: "optuna.Study") -> list[int]:
    """End the trials whose process on this host is gone, and enqueue them anew; their numbers.

    The caller holds the database's lock.
    """
    from optuna.trial import TrialState

    buried = []
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        process = trial.user_attrs.get(PROCESS)
        if process is None or is_known_dead(ProcessIdentity(**process)):
            study.tell(trial.number, state=TrialState.FAIL)
            try_again(study, trial)
            buried.append(trial.number)
    return buried


def try_again(study: "optuna.Study", trial: "FrozenTrial") -> None:
    """Enqueue a trial's parameters once more, at most three times."""
    from optuna.storages import RetryHeartbeatStaleTrialCallback

    if trial.params:
        RetryHeartbeatStaleTrialCallback(max_retry=MAX_RETRIES)(study, without_marks(trial))


def without_marks(trial: "FrozenTrial") -> "FrozenTrial":
    """A copy that doesn't say who ran it."""
    from copy import deepcopy

    copy = deepcopy(trial)
    marks: dict[str, Any] = {k: v for k, v in copy.user_attrs.items() if k != PROCESS}
    copy.user_attrs = marks
    return copy


def retry_of(trial: "FrozenTrial") -> int | None:
    """The number of the trial that this one stands in for."""
    number = trial.system_attrs.get("failed_trial")  # as RetryHeartbeatStaleTrialCallback leaves it
    return None if number is None else int(number)
