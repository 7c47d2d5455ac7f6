"""``predictions.parquet``: what model and baselines say of every val and holdout patch."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from src.data.dataset import LabelledPatches
from src.data.groups import stain_names
from src.evaluation.baseline import baseline_probability, fit_baselines, stronger
from src.evaluation.calibration import fit_calibration, probability

ONE_VIEW = "logit_one_view"


def predictions_of(
    train: LabelledPatches,
    scored_splits: tuple[LabelledPatches, LabelledPatches],
    *,
    logits: list[NDArray[np.float64]],
    histograms: list[NDArray[np.float32]],
    seed: int,
) -> pd.DataFrame:
    """``predictions.parquet`` without origins, one row per val or holdout patch.

    ``scored_splits`` are val and holdout; ``logits`` belong to them, (views, n) each, and
    ``histograms`` to train, val and holdout. Calibration is fitted on val, the baselines on train.

    ==========================  ================================================================
    ``id split group label``    as in the split; label 0 normal, 1 tumour
    ``logit``                   of the model; the mean over 8 views with ``evaluate.tta``
    ``logit_one_view``          of the patch as it is; only with ``evaluate.tta``
    ``probability``             sigmoid(scale * logit + shift)
    ``baseline_logistic``       of logistic regression on colour histograms
    ``baseline_trees``          of gradient-boosted trees on the same
    ``baseline_probability``    the one of these two that has the higher AUROC on val
    ==========================  ================================================================
    """
    floors = fit_baselines(histograms[0], train.labels, seed=seed)
    calibration = fit_calibration(scored_splits[0].labels, logits[0].mean(axis=0))
    tables = []
    for split, by_view, histogram in zip(scored_splits, logits, histograms[1:], strict=True):
        mean = by_view.mean(axis=0)
        columns = {
            "id": split.ids,
            "split": split.split,
            "group": split.groups,
            "label": split.labels.astype(np.int8),
            "logit": mean,
            **({ONE_VIEW: by_view[0]} if len(by_view) > 1 else {}),
            "probability": probability(mean, **calibration._asdict()),
        }
        columns |= {n: baseline_probability(m, histogram) for n, m in floors.items()}
        tables.append(pd.DataFrame(columns))
    predictions = pd.concat(tables, ignore_index=True)
    return predictions.assign(baseline_probability=predictions[stronger(tables[0])])


def with_origins(predictions: pd.DataFrame, patches: pd.DataFrame, seed: int) -> pd.DataFrame:
    """With ``slide``, ``sha256`` of the pixels, and ``stain``, a few clusters by colour.

    From ``patches.parquet``; slide is null where the archive names none, stain for blank patches.
    """
    labelled = patches[patches["subset"] == "train"]
    origins = labelled[["id", "slide", "sha256"]].assign(stain=stain_names(labelled, seed=seed))
    return predictions.merge(origins, on="id", how="left", validate="one_to_one")
