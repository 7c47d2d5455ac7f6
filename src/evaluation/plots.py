"""The tables that ``dvc plots`` draws, one CSV each."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from src.evaluation.curves import precision_recall_curve, roc_curve, thinned
from src.evaluation.metrics import scored

if TYPE_CHECKING:
    import pandas as pd

_MAX_POINTS = 500
_NAMES = np.array(["normal", "tumour"])


def plot_tables(
    holdout: "pd.DataFrame", fits: Sequence[Mapping[str, Any]], *, threshold: float
) -> "dict[str, pd.DataFrame]":
    """Tables by name: roc, precision_recall, confusion, loss, learning_rate.

    ``holdout`` has columns label and probability; ``fits`` are the ``fit.json`` of ``train`` and
    ``finetune`` in that order.
    """
    import pandas as pd

    patches = scored(holdout["label"], holdout["probability"], threshold=threshold)
    fpr, tpr = thinned(*roc_curve(patches.labels, patches.scores), max_points=_MAX_POINTS)
    recall, precision = thinned(
        *precision_recall_curve(patches.labels, patches.scores), max_points=_MAX_POINTS
    )
    epochs = _epochs(fits)
    return {
        "roc": pd.DataFrame({"fpr": fpr, "tpr": tpr}),
        "precision_recall": pd.DataFrame({"recall": recall, "precision": precision}),
        "confusion": pd.DataFrame(
            {
                "actual": _NAMES[patches.labels.astype(np.intp)],
                "predicted": _NAMES[patches.called_tumour.astype(np.intp)],
            }
        ),
        "loss": epochs[["stage", "stage_epoch", "epoch", "loss", "val_loss", "val_auroc"]],
        "learning_rate": epochs[["stage", "stage_epoch", "epoch", "learning_rate"]],
    }


def _epochs(fits: Sequence[Mapping[str, Any]]) -> "pd.DataFrame":
    """One row an epoch of either stage; ``epoch`` counts on from ``train`` to ``finetune``."""
    import pandas as pd

    rows = [{**row, "stage": fit["stage"]} for fit in fits for row in fit["history"]]
    table = pd.DataFrame(rows).rename(columns={"epoch": "stage_epoch"})
    table["epoch"] = range(1, len(table) + 1)
    return table
