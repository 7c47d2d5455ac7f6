"""Early stopping: both sides of every boundary."""

import pytest

from src.model.schedules import Patience
from src.params import EarlyStopping


def _follow(values, *, monitor="val_auroc", patience=2, min_delta=0.0):
    follower = Patience(EarlyStopping(monitor=monitor, patience=patience, min_delta=min_delta))
    for epoch, value in enumerate(values, start=1):
        follower.observe(epoch, {monitor: value})
        if follower.exhausted:
            break
    return epoch, follower.best_epoch


@pytest.mark.parametrize(
    ("values", "stopped_after", "best"),
    [
        ([0.7, 0.8, 0.79, 0.78, 0.9], 4, 2),  # two epochs without improvement
        ([0.7, 0.8, 0.79, 0.81, 0.8], 5, 4),  # one, then a better one
        ([0.7, 0.7, 0.7], 3, 1),  # equal is not better
    ],
)
def test_auroc_is_better_when_higher(values, stopped_after, best):
    """Catches patience counted from the wrong epoch."""
    assert _follow(values) == (stopped_after, best)


def test_loss_is_better_when_lower():
    """Catches the wrong direction for a loss."""
    assert _follow([0.5, 0.4, 0.45, 0.46], monitor="val_loss") == (4, 2)


def test_small_lead_is_kept_as_best_but_costs_patience():
    """Catches a best epoch that is not the best, and patience that never ends."""
    assert _follow([0.8, 0.801, 0.802], min_delta=0.01) == (3, 3)
