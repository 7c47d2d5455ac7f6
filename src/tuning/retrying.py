"""The one rule for trials that were interrupted: their values are run again.

Interrupted is a trial whose worker died (it ended without a reason) or was stopped by hand. Whoever
claims a trial applies the rule first, under the database's lock. It looks at what the database says
and nothing else, so it may be applied any number of times, by anyone.
"""

from typing import TYPE_CHECKING, Any

from src.tracking.lifecycle import ProcessIdentity, is_dead_since_boot
from src.tuning import budget
from src.tuning.space import PRESENT

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

_FIXED = "fixed_params"  # Optuna's name for the values of a trial that was enqueued


def settle(study: "optuna.Study") -> list[int]:
    """End the trials of the dead, and enqueue a stand-in for each interrupted trial without one.

    Returns the numbers of the trials that have one now. The caller holds the database's lock: under
    it no trial is between its begin and its signature, unless its worker died there.
    """
    _end_dead(study)
    trials = study.get_trials(deepcopy=False)
    stood_in_for = {budget.retry_of(trial) for trial in trials}
    lost = [t for t in trials if needs_stand_in(t) and t.number not in stood_in_for]
    for trial in lost:
        study.add_trial(stand_in(trial))
    return [trial.number for trial in lost]


def _end_dead(study: "optuna.Study") -> None:
    import optuna

    for trial in study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):
        process = trial.user_attrs.get(budget.PROCESS)
        if process is None or is_dead_since_boot(ProcessIdentity(**process)):
            study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
    optuna.storages.fail_stale_trials(study)  # those of other hosts, by their heartbeat


def needs_stand_in(trial: "FrozenTrial") -> bool:
    """Whether a trial was interrupted and had values; without any, the next draw stands in."""
    return budget.state_of(trial) == "retried" and bool(
        trial.params or trial.system_attrs.get(_FIXED)
    )


def stand_in(trial: "FrozenTrial") -> "FrozenTrial":
    """A waiting trial with the values of ``trial``, and nothing that was found or marked in it."""
    import optuna

    marks: dict[str, Any] = {
        budget.RETRY_OF: trial.number,
        budget.N_DEATHS: budget.n_deaths(trial),
    }
    if trial.user_attrs.get(PRESENT):
        marks[PRESENT] = True
    fixed = trial.system_attrs.get(_FIXED)
    return optuna.trial.create_trial(
        state=optuna.trial.TrialState.WAITING,
        params=trial.params,
        distributions=trial.distributions,
        user_attrs=marks,
        system_attrs={_FIXED: fixed} if fixed else {},
    )
