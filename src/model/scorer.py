"""A registered version's model at work: patches in, probabilities and decisions out.

The one way in which ``register``, ``promote``, ``predict`` and the server score: they agree.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from logging import Logger
from pathlib import Path
from typing import Any, Protocol

import keras
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from src.data.dataset import LabelledPatches, load_split
from src.data.sources import PatchInput, batches
from src.model.final import check_contract
from src.model.inference import forward_pass, predict_outputs
from src.system.durable import replacing
from src.system.errors import ProjectError, VerificationError
from src.system.progress import progress

DECISIONS = ("normal", "tumour")

_PROBABILITY_LAYER = "probability"


class ScoreError(ProjectError):
    """A model answers with what is no probability, or patches can't be scored."""


class Registered(Protocol):
    """What is needed of ``src.tracking.registry.Version``; each attribute is verified when read."""

    name: str
    number: int

    @property
    def model_file(self) -> Path:
        """uint8 (n, 96, 96, 3) → probability float32 (n, 1)."""

    @property
    def operating_point(self) -> Mapping[str, Any]:
        """Among others ``threshold``."""

    @property
    def contract(self) -> Mapping[str, Any]:
        """What its input and output are."""

    @property
    def golden(self) -> tuple[NDArray[np.uint8], NDArray[np.float64]] | None:
        """Patches (8, 96, 96, 3) and the logits (8,) they gave when it was registered."""


class Scorer:
    """Scores patches with one version, which is loaded in Keras' safe mode.

    Raises
    ------
    VerificationError
        Its files aren't those registered, or Keras can't load the model.
    ContractError
        The version expects other input than this code gives, or answers otherwise.
    """

    def __init__(self, version: Registered) -> None:
        self._called = f"version {version.number} of {version.name}"
        self._golden = version.golden
        self.threshold = float(version.operating_point["threshold"])
        self.model = _load(version.model_file)
        check_contract(version.contract, self.model)
        self._forward = forward_pass(self.model)

    def probabilities(self, pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Calibrated probability of tumour (n,) of patches (n, 96, 96, 3) uint8.

        Raises
        ------
        ScoreError
            One isn't a finite number.
        """
        if not len(pixels):
            return np.empty(0)
        return finite(self._forward(pixels)[:, 0].astype(np.float64), self._called)

    def of_rows(
        self,
        pixels: NDArray[np.uint8],
        rows: NDArray[np.int64],
        *,
        batch_size: int,
        log: Logger,
    ) -> NDArray[np.float64]:
        """The same of ``pixels[rows]``, batch by batch: ``pixels`` may be memory-mapped."""
        scores = predict_outputs(self.model, pixels, rows, batch_size=batch_size, log=log)
        return finite(scores, self._called)

    def decisions(self, probabilities: NDArray[np.float64]) -> list[str]:
        """``tumour`` at or above the stored threshold, ``normal`` below it."""
        return [DECISIONS[int(p >= self.threshold)] for p in probabilities]

    def golden_error(self) -> float | None:
        """Largest difference in logit from the golden batch, NaN if one is NaN; None without it."""
        if self._golden is None:
            return None
        patches, logits = self._golden
        return float(np.abs(logits_of(self.model, patches) - logits).max())


class HoldoutScores:
    """What versions say of holdout patches; each version is loaded once."""

    def __init__(self, *, batch_size: int, log: Logger) -> None:
        self._batch_size = batch_size
        self._log = log
        self._scorers: dict[int, Scorer] = {}

    def golden_error(self, version: Registered) -> float | None:
        """See :meth:`Scorer.golden_error`."""
        return self._scorer(version).golden_error()

    def probabilities(self, version: Registered, ids: pd.Series[str]) -> NDArray[np.float64]:
        """Probabilities (n,) of holdout patches, in the order of ``ids``."""
        patches = load_split("holdout")
        return self._scorer(version).of_rows(
            patches.pixels, rows_of(ids, patches), batch_size=self._batch_size, log=self._log
        )

    def _scorer(self, version: Registered) -> Scorer:
        if version.number not in self._scorers:
            self._scorers[version.number] = Scorer(version)
        return self._scorers[version.number]


def write_predictions(
    source: PatchInput,
    scorer: Scorer,
    output: Path,
    *,
    batch_size: int,
    skip_bad: bool,
    log: Logger,
) -> None:
    """Write a csv ``id``, ``probability``, ``decision``, whole or not at all.

    Each unreadable patch is a line of log and, with ``skip_bad``, a row with empty values. Without,
    the first one ends the scoring, the others are still named, and nothing is written.

    Raises
    ------
    ScoreError
        See above.
    """
    n_bad = 0
    with (
        replacing(output) as temporary,
        temporary.open("w", encoding="utf-8", newline="") as file,
        progress("predicted", len(source.ids), "patches", log) as advance,
    ):
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["id", "probability", "decision"])
        for batch in batches(source, batch_size=batch_size):
            for i, reason in batch.bad.items():
                log.warning(f"unreadable patch {source.names[batch.first + i]}: {reason}")
            n_bad += len(batch.bad)
            if skip_bad or not n_bad:
                probabilities = scorer.probabilities(batch.pixels)
                rows = [(i, "", "") for i in source.ids[batch.first : batch.first + batch.n]]
                scored = zip(
                    batch.usable, probabilities, scorer.decisions(probabilities), strict=True
                )
                for i, probability, decision in scored:
                    # 9 significant digits tell any two float32 apart
                    rows[i] = (rows[i][0], f"{probability:.9g}", decision)
                table.writerows(rows)
            advance(batch.n)
        if n_bad and not skip_bad:
            raise ScoreError(
                f"{n_bad:,} of {len(source.ids):,} patches are unreadable, named above; mend "
                "them, or leave them empty with --skip-bad; nothing was written"
            )
    log.info(f"{len(source.ids):,} rows in {output}, {n_bad:,} of them unreadable and empty")


def logits_of(model: keras.Model, patches: NDArray[np.uint8]) -> NDArray[np.float64]:
    """What enters the layer ``probability`` of a final model, (n,), in the graph that scores.

    Logits, because a probability near 0 or 1 hides a difference in the float32 it is stored in.

    Raises
    ------
    VerificationError
        The model has no such layer: it isn't one of this project's.
    """
    try:
        logit = model.get_layer(_PROBABILITY_LAYER).input
    except ValueError as error:
        raise VerificationError(
            f"model verification failed: no layer named {_PROBABILITY_LAYER!r}; register "
            "models/final of this project's evaluate"
        ) from error
    return forward_pass(keras.Model(model.input, logit))(patches)[:, 0].astype(np.float64)


def rows_of(ids: pd.Series[str], patches: LabelledPatches) -> NDArray[np.int64]:
    """Where each id lies in the packed pixels."""
    rows = pd.Series(patches.rows, index=patches.ids).reindex(ids)
    if rows.isna().any():
        raise ProjectError(
            f"{int(rows.isna().sum()):,} holdout ids of predictions.parquet are not in the split, "
            f"first: {rows.index[rows.isna()][0]}; run: dvc repro evaluate"
        )
    return rows.to_numpy(dtype=np.int64)


def finite(scores: NDArray[np.float64], model: str) -> NDArray[np.float64]:
    """``scores`` (n,) of ``model``, if all are finite: NaN compares as normal, and sorts anywhere.

    Raises
    ------
    ScoreError
        How many aren't.
    """
    n_odd = int(np.count_nonzero(~np.isfinite(scores)))
    if n_odd:
        raise ScoreError(
            f"{model} gives no finite number for {n_odd:,} of {len(scores):,} patches: the model "
            "is broken; go back to another (python -m src.promote) or run: dvc repro --force "
            "finetune"
        )
    return scores


def _load(model_file: Path) -> keras.Model:
    try:
        return keras.saving.load_model(model_file, compile=False, safe_mode=True)
    except (ValueError, OSError, TypeError, KeyError) as error:
        raise VerificationError(
            f"model verification failed: Keras can't load {model_file}: {error}; register the "
            "model again: dvc repro --single-item --force register predict"
        ) from error
