"""A study's trials as a table, and what is read off it."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from src.params import TuneParams
from src.tuning import budget
from src.tuning.space import values_of

if TYPE_CHECKING:
    import pandas as pd
    from optuna.trial import FrozenTrial

COLUMNS = ["trial", "state", "value", "epochs", "seconds", "retry_of", "run_id", "reason"]


def trials_table(trials: "Sequence[FrozenTrial]", tune: TuneParams) -> "pd.DataFrame":
    """One row a trial, in order of number: :data:`COLUMNS`, then a column a dimension.

    ``value`` is the objective at the kept epoch, of a pruned trial at its last one; NaN where there
    is none. ``epochs`` are those reported, ``seconds`` wall time.
    """
    import pandas as pd

    rows = [_row(trial, tune) for trial in trials]
    return pd.DataFrame(rows, columns=[*COLUMNS, *tune.space])


def _row(trial: "FrozenTrial", tune: TuneParams) -> dict[str, Any]:
    duration = trial.duration
    is_drawn = set(tune.space) <= set(trial.params)
    return {
        "trial": trial.number,
        "state": budget.state_of(trial),
        "value": _value(trial),
        "epochs": len(trial.intermediate_values),
        "seconds": None if duration is None else duration.total_seconds(),
        "retry_of": budget.retry_of(trial),
        "run_id": trial.user_attrs.get("run_id"),
        "reason": trial.user_attrs.get(budget.REASON),
        **(values_of(tune.space, trial.params) if is_drawn else {}),
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


def settings(row: "pd.Series | Mapping[str, Any]", tune: TuneParams) -> dict[str, Any]:
    """The values of a row's dimensions, as plain Python."""
    found = {}
    for name in tune.space:
        value = row[name]
        found[name] = value.item() if hasattr(value, "item") else value
    return found


def shown(value: Any) -> str:
    """A parameter's value for people: 0.00002 is ``2e-05``."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)
