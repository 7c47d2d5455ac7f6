"""Between ``params.yaml``'s space and Optuna: distributions, and what a trial's values mean."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from optuna import Trial
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial

from src.params import Choice, Dimension, LinearRange, LogRange, Params, ParamsError
from src.system.errors import ProjectError

Space = Mapping[str, Dimension]

PRESENT = "present"  # marks the trial that has the values of params.yaml, to every digit

_DEPTH = "finetune.depth"
_DIGITS = 3  # significant ones of a number drawn from a range: what is trained is what is applied


class TuneError(ProjectError):
    """A search that can't begin, go on, or be applied."""


def distributions(space: Space) -> dict[str, BaseDistribution]:
    """The space as Optuna draws from it, in its order."""
    return {name: _distribution(dimension) for name, dimension in space.items()}


def _distribution(dimension: Dimension) -> BaseDistribution:
    if isinstance(dimension, Choice):
        return CategoricalDistribution([_label(value) for value in dimension.choice])
    if isinstance(dimension, LogRange):
        low, high = dimension.log
        return FloatDistribution(low, high, log=True)
    low, high = dimension.linear
    if isinstance(low, int) and isinstance(high, int):
        return IntDistribution(low, high)
    return FloatDistribution(low, high)


def draw(trial: Trial, space: Space) -> dict[str, Any]:
    """Let Optuna draw every dimension; the values that the trial is run with."""
    for name, distribution in distributions(space).items():
        if isinstance(distribution, CategoricalDistribution):
            trial.suggest_categorical(name, distribution.choices)
        elif isinstance(distribution, IntDistribution):
            trial.suggest_int(name, distribution.low, distribution.high)
        elif isinstance(distribution, FloatDistribution):
            trial.suggest_float(name, distribution.low, distribution.high, log=distribution.log)
    return values_of(space, trial.params, exact=PRESENT in trial.user_attrs)


def values_of(space: Space, drawn: Mapping[str, Any], *, exact: bool = False) -> dict[str, Any]:
    """What Optuna drew, as values of parameters.

    Numbers from a range have 3 significant digits, unless ``exact``: they weren't drawn then.
    """
    return {name: _value(space[name], drawn[name], exact=exact) for name in space}


def _value(dimension: Dimension, drawn: Any, *, exact: bool) -> Any:
    if isinstance(dimension, Choice):
        return next(value for value in dimension.choice if _label(value) == drawn)
    if exact or isinstance(drawn, int):
        return drawn
    low, high = map(float, dimension.ends)  # type: ignore[arg-type]  # a range's ends are numbers
    return min(max(float(f"{drawn:.{_DIGITS}g}"), low), high)


def trial_values(space: Space, trial: FrozenTrial) -> dict[str, Any] | None:
    """The values a trial was run with; None where not all were drawn yet."""
    if not set(space) <= set(trial.params):
        return None
    return values_of(space, trial.params, exact=PRESENT in trial.user_attrs)


def present_as_drawn(params: Params) -> dict[str, Any] | None:
    """The present parameters as Optuna would have drawn them; None where the space lacks one."""
    drawn = {}
    for name, dimension in params.tune.space.items():
        value = params.value(name)
        if isinstance(dimension, Choice):
            same = [c for c in dimension.choice if _means(params, name, c, value)]
            if not same:
                return None
            drawn[name] = _label(same[0])
        elif _is_in(dimension, value):
            drawn[name] = value
        else:
            return None
    return drawn


def _means(params: Params, name: str, choice: Any, value: Any) -> bool:
    """Whether a choice, read as ``params.yaml`` is, gives the value: 1 is 1.0 there."""
    try:
        return bool(params.with_values({name: choice}).value(name) == value)
    except ParamsError:
        return False  # not allowed beside the present values of others


def _is_in(dimension: LogRange | LinearRange, value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    if all(isinstance(end, int) for end in dimension.ends) and value != int(value):
        return False
    low, high = map(float, dimension.ends)  # type: ignore[arg-type]  # a range's ends are numbers
    return low <= value <= high


def _label(value: Any) -> Any:
    """Optuna keeps plain values only; a mapping becomes its JSON."""
    return json.dumps(value, sort_keys=True) if isinstance(value, dict) else value


def depths(params: Params) -> list[int]:
    """Depths that fine-tuning may have in a trial; that of ``params`` where none is searched."""
    dimension = params.tune.space.get(_DEPTH)
    if dimension is None:
        return [params.finetune.depth]
    ends = [int(str(end)) for end in dimension.ends]
    return ends if isinstance(dimension, Choice) else list(range(ends[0], ends[1] + 1))
