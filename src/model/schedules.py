"""Learning-rate schedules, as plain numbers, and when to stop: what an epoch's scores decide.

A new schedule is one entry of :data:`SCHEDULES` and its parameters in ``src.params``; the contract
test in ``tests/model/test_schedules.py`` covers every entry.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from src import params


class Schedule(ABC):
    """The rate of each training step; steps are counted from 0 over the whole phase."""

    def __init__(self, *, peak: float, steps_per_epoch: int, epochs: int) -> None:
        self.peak = peak
        self.steps_per_epoch = steps_per_epoch
        self.n_steps = steps_per_epoch * epochs

    @abstractmethod
    def rate(self, step: int) -> float:
        """Learning rate of step ``step``."""

    def after_epoch(self, val_loss: float) -> None:  # noqa: B027 - most schedules don't listen
        """Hear how an epoch went."""

    def state(self) -> dict[str, Any]:
        """What must be kept, besides the step, to go on after an interruption."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:  # noqa: B027 - most schedules have none
        """Take back what :meth:`state` gave."""


class Constant(Schedule):
    """The peak rate throughout."""

    def rate(self, step: int) -> float:  # noqa: ARG002
        return self.peak


class Cosine(Schedule):
    """Linear warm-up to the peak, then half a cosine down to ``final_fraction`` of it.

    Loshchilov & Hutter 2017 (SGDR), eq. 5, one cycle.
    """

    def __init__(self, spec: params.CosineSchedule, **shape: Any) -> None:
        super().__init__(**shape)
        self.n_warmup = min(round(spec.warmup_epochs * self.steps_per_epoch), self.n_steps)
        self.final_fraction = spec.final_fraction

    def rate(self, step: int) -> float:
        if step < self.n_warmup:
            return self.peak * (step + 1) / self.n_warmup
        n_falling = max(1, self.n_steps - 1 - self.n_warmup)
        progress = min(1.0, (step - self.n_warmup) / n_falling)
        return _half_cosine(self.peak, self.final_fraction * self.peak, progress)


class OneCycle(Schedule):
    """Half a cosine up to the peak, then half a cosine down to the last step.

    Smith 2018 (arXiv:1803.09820), the rate alone, in the shape fastai gave it (Howard & Gugger
    2020, Information 11:108).
    """

    def __init__(self, spec: params.OneCycleSchedule, **shape: Any) -> None:
        super().__init__(**shape)
        self.n_rising = round(spec.warmup_fraction * (self.n_steps - 1))
        self.start = self.peak / spec.start_divisor
        self.final = self.peak / spec.final_divisor

    def rate(self, step: int) -> float:
        if step < self.n_rising:
            return _half_cosine(self.start, self.peak, step / self.n_rising)
        n_falling = max(1, self.n_steps - 1 - self.n_rising)
        return _half_cosine(self.peak, self.final, min(1.0, (step - self.n_rising) / n_falling))


class Plateau(Schedule):
    """The rate falls by ``factor`` when val loss has not gone down for ``patience`` epochs."""

    def __init__(self, spec: params.PlateauSchedule, **shape: Any) -> None:
        super().__init__(**shape)
        self.spec = spec
        self.current = self.peak
        self.best = math.inf
        self.epochs_since_best = 0

    def rate(self, step: int) -> float:  # noqa: ARG002
        return self.current

    def after_epoch(self, val_loss: float) -> None:
        if val_loss < self.best:
            self.best, self.epochs_since_best = val_loss, 0
            return
        self.epochs_since_best += 1
        if self.epochs_since_best >= self.spec.patience:
            lowered = max(self.spec.min_rate, self.current * self.spec.factor)
            self.current = min(self.current, lowered)  # a floor above the rate doesn't raise it
            self.epochs_since_best = 0

    def state(self) -> dict[str, Any]:
        best = None if math.isinf(self.best) else self.best
        return {"rate": self.current, "best": best, "epochs_since_best": self.epochs_since_best}

    def restore(self, state: dict[str, Any]) -> None:
        self.current = state["rate"]
        self.best = math.inf if state["best"] is None else state["best"]
        self.epochs_since_best = state["epochs_since_best"]


def _half_cosine(first: float, last: float, progress: float) -> float:
    """``first`` at progress 0, ``last`` at 1, level at both ends."""
    return last + (first - last) * 0.5 * (1 + math.cos(math.pi * progress))


SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "constant": lambda _spec, **shape: Constant(**shape),
    "cosine": Cosine,
    "one_cycle": OneCycle,
    "plateau": Plateau,
}


def make_schedule(
    spec: params.Schedule, *, peak: float, steps_per_epoch: int, epochs: int
) -> Schedule:
    """The schedule ``spec`` names, for a phase of ``epochs`` × ``steps_per_epoch`` steps."""
    shape = {"peak": peak, "steps_per_epoch": steps_per_epoch, "epochs": epochs}
    return SCHEDULES[spec.name](spec, **shape)


_HIGHER_IS_BETTER = {"val_auroc": True, "val_loss": False}


@dataclass
class Patience:
    """Follows one value over the epochs.

    The best epoch is the one with the best value, however small its lead; an epoch resets the
    patience only if it leads by more than ``min_delta``.
    """

    rule: params.EarlyStopping
    best_epoch: int = 0
    best: float = -math.inf
    reference: float = -math.inf
    epochs_waited: int = 0

    def observe(self, epoch: int, values: dict[str, float]) -> bool:
        """Take an epoch's values; True when it is the best so far."""
        value = values[self.rule.monitor]
        score = value if _HIGHER_IS_BETTER[self.rule.monitor] else -value
        if score > self.reference + self.rule.min_delta:
            self.reference = score
            self.epochs_waited = 0
        else:
            self.epochs_waited += 1
        if score <= self.best:
            return False
        self.best, self.best_epoch = score, epoch
        return True

    def state(self) -> dict[str, float | int]:
        """What must be kept to go on after an interruption; ``Patience(rule, **state)``."""
        return {
            "best_epoch": self.best_epoch,
            "best": self.best,
            "reference": self.reference,
            "epochs_waited": self.epochs_waited,
        }

    @property
    def exhausted(self) -> bool:
        """Whether ``patience`` epochs have passed without a clear improvement."""
        return self.epochs_waited >= self.rule.patience
