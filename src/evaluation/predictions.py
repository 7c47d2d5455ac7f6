"""The columns of ``predictions.parquet``, one row a val or holdout patch.

==========================  ====================================================================
``id split group label``    as in the split; label 0 normal, 1 tumour
``sha256``                  of the pixels
``slide``                   null where the archive doesn't name it
``stain``                   a few clusters by colour (``src.data.groups``), null if blank
``logit``                   of the model; the mean over 8 views with ``evaluate.tta``
``logit_one_view``          of the patch as it is; only with ``evaluate.tta``
``probability``             sigmoid(scale * logit + shift)
``baseline_logistic``       of logistic regression on colour histograms
``baseline_trees``          of gradient-boosted trees on the same
``baseline_probability``    the one of these two that has the higher AUROC on val
==========================  ====================================================================
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

ONE_VIEW = "logit_one_view"


def rows_of(predictions: "pd.DataFrame", split: str) -> "pd.DataFrame":
    """The rows of one split."""
    return predictions[predictions["split"] == split]
