"""Early stopping and the choice of the best epoch."""

import math
from dataclasses import dataclass

from src.params import EarlyStopping

_HIGHER_IS_BETTER = {"val_auroc": True, "val_loss": False}


@dataclass
class Patience:
    """Follows one value over the epochs.

    The best epoch is the one with the best value, however small its lead; an epoch resets the
    patience only if it leads by more than ``min_delta``.
    """

    rule: EarlyStopping
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
