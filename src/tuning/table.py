"""A study's trials as a table, and what is read off it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from src.params import TuneParams
from src.tuning import budget
from src.tuning.space import trial_values

if TYPE_CHECKING:
    import pandas as pd
    from optuna.trial import FrozenTrial

COLUMNS = ["trial", "state", "value", "epochs", "seconds", "retry_of", "run_id", "reason"]


def trials_table(trials: "Sequence[FrozenTrial]", tune: TuneParams) -> "pd.DataFrame":
    """One row a trial, in order of number: :data:`COLUMNS`, then a column a dimension.

    ``value`` is the objective at the kept epoch, of a pruned trial at its last one; NaN where there
    is none. ``epochs`` are those reported, ``seconds`` wall time. The dimensions' columns hold the
    values as they are; None too where none was drawn.
    """
    import pandas as pd

    table = pd.DataFrame([_row(trial) for trial in trials], columns=COLUMNS)
    drawn = [trial_values(tune.space, trial) or {} for trial in trials]
    for name in tune.space:
        # as objects: pandas would turn null into NaN, and a whole number beside it into 2.0
        values = [each.get(name) for each in drawn]
        table[name] = pd.Series(values, index=table.index, dtype=object)
    return table


def _row(trial: "FrozenTrial") -> dict[str, Any]:
    duration = trial.duration
    return {
        "trial": trial.number,
        "state": budget.state_of(trial),
        "value": _value(trial),
        "epochs": len(trial.intermediate_values),
        "seconds": None if duration is None else duration.total_seconds(),
        "retry_of": budget.retry_of(trial),
        "run_id": trial.user_attrs.get("run_id"),
        "reason": budget.why_failed(trial),
    }


def _value(trial: "FrozenTrial") -> float | None:
    reported = trial.intermediate_values
    if trial.state.name == "COMPLETE":
        return trial.value
    return reported[max(reported)] if trial.state.name == "PRUNED" and reported else None


def best_row(table: "pd.DataFrame", *, objective: str) -> "pd.Series | None":
    """The complete trial with the best value, the first of equals; None where there is none."""
    complete = table[table["state"] == "complete"]
    if complete.empty:
        return None
    values = complete["value"].astype(float)
    where = values.argmax() if objective == "val_auroc" else values.argmin()
    return complete.iloc[int(where)]


def best_so_far(table: "pd.DataFrame", *, objective: str) -> "pd.Series":
    """After each trial, the best value of the complete ones; NaN before the first."""
    values = table["value"].where(table["state"] == "complete").astype(float)
    best = values.cummax() if objective == "val_auroc" else values.cummin()
    return best.ffill()


def best_trial(trials: "Sequence[FrozenTrial]", *, objective: str) -> "FrozenTrial | None":
    """As :func:`best_row`, the trial itself."""
    sign = sign_of(objective)
    complete = [t for t in trials if t.state.name == "COMPLETE" and t.value is not None]
    return max(complete, key=lambda t: sign * (t.value or 0.0), default=None)


def sign_of(objective: str) -> int:
    """1 where a higher objective is better, -1 where a lower one is."""
    return 1 if objective == "val_auroc" else -1


def shown(value: Any) -> str:
    """A parameter's value for people: 0.00002 is ``2e-05``."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)
