"""What a person sees while a study runs: a table on a terminal, a line a change elsewhere."""

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from logging import Logger
from typing import TYPE_CHECKING, Any

from src.params import Params
from src.tuning import budget
from src.tuning.space import trial_values
from src.tuning.table import best_trial, shown

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial
    from rich.live import Live
    from rich.table import Table

_ROWS = 20  # the newest trials; the best is named below them


class Watch:
    """Told of all trials now and then; shows what changed."""

    def __init__(self, params: Params, log: Logger) -> None:
        self._params = params
        self._tune = params.tune
        self._log = log
        self._states: dict[int, str] = {}
        self._started = time.monotonic()
        self._counted_before: int | None = None
        self._live: Live | None = None

    @contextmanager
    def shown(self) -> Iterator["Watch"]:
        """Show the live table inside, where there is a terminal."""
        if not sys.stdout.isatty():
            yield self
            return
        from rich.live import Live

        with Live(refresh_per_second=2) as self._live:
            yield self
        self._live = None

    def look(self, trials: "Sequence[FrozenTrial]") -> None:
        """Show how the study stands."""
        if self._counted_before is None:
            self._counted_before = budget.n_counted(trials)
        if self._live is not None:
            self._live.update(self.table(trials))
            return
        for trial in trials:
            state = budget.state_of(trial)
            if self._states.get(trial.number) != state:
                self._states[trial.number] = state
                if state not in ("waiting", "running"):
                    self._log.info(f"{self._line(trial, state)}; {self.summary(trials)}")

    def _line(self, trial: "FrozenTrial", state: str) -> str:
        reason = budget.why_failed(trial)
        said = f" ({reason})" if state == "failed" and reason else ""
        return f"trial {trial.number} {state}{said}: {self._values(trial)}{_score(trial)}"

    def _values(self, trial: "FrozenTrial") -> str:
        values = trial_values(self._tune.space, trial)
        if values is None:
            return "not drawn yet"
        return ", ".join(f"{name} {shown(value)}" for name, value in values.items())

    def summary(self, trials: "Sequence[FrozenTrial]") -> str:
        """``7 of 12 trials, best 0.9312 (trial 4), about 95 s left``."""
        n = budget.n_counted(trials)
        best = self._best(trials)
        found = "" if best is None else f", best {best.value:.4f} (trial {best.number})"
        return f"{n} of {self._tune.n_trials} trials{found}{self._left(n)}"

    def _left(self, n: int) -> str:
        done = n - (self._counted_before or 0)
        left = self._tune.n_trials - n
        if done < 1 or left < 1:
            return ""
        return f", about {left * (time.monotonic() - self._started) / done:,.0f} s left"

    def _best(self, trials: "Sequence[FrozenTrial]") -> "FrozenTrial | None":
        return best_trial(trials, objective=self._tune.objective)

    def _epochs(self, trial: "FrozenTrial", values: Mapping[str, Any]) -> str:
        n = len(trial.intermediate_values)
        of = self._tune.epochs or values.get("finetune.epochs", self._params.finetune.epochs)
        return f"{n}/{of}" if n else ""

    def table(self, trials: "Sequence[FrozenTrial]") -> "Table":
        """The newest trials: parameters, epoch, score, state."""
        from rich.table import Table

        table = Table(caption=self.summary(trials))
        for name in ("trial", *self._tune.space, "epoch", self._tune.objective, "state"):
            table.add_column(name, overflow="fold")
        best = self._best(trials)
        for trial in trials[-_ROWS:]:
            values = trial_values(self._tune.space, trial) or {}
            state = budget.state_of(trial)
            is_best = best is not None and trial.number == best.number
            table.add_row(
                str(trial.number),
                *(shown(values[name]) if values else "" for name in self._tune.space),
                self._epochs(trial, values),
                _number(trial),
                f"{state} (best)" if is_best else state,
                style="bold" if is_best else "",
            )
        return table


def _number(trial: "FrozenTrial") -> str:
    reported = trial.intermediate_values
    if trial.state.name == "COMPLETE" and trial.value is not None:
        return f"{trial.value:.4f}"
    return f"{reported[max(reported)]:.4f}" if reported else ""


def _score(trial: "FrozenTrial") -> str:
    number = _number(trial)
    n = len(trial.intermediate_values)
    return f"; {number} after {n} epochs" if number else ""
