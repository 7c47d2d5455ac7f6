"""Scoring patches with a version: what is no number is no decision."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from src import deciding, scoring
from tests.evaluated import labelled_patches

VERSION = SimpleNamespace(name="m", version=2, contract=None, model=None)
NAN_OF_TWO = np.array([0.5, np.nan], np.float32)


def test_nan_is_refused_rather_than_called_normal(monkeypatch):
    """NaN >= threshold is False: a broken model would clear every patch."""
    monkeypatch.setattr(scoring, "check_contract", lambda *_: None)
    monkeypatch.setattr(scoring, "forward_pass", lambda _: lambda _: NAN_OF_TWO)
    version = SimpleNamespace(**vars(VERSION), operating_point={"threshold": 0.4})
    with pytest.raises(
        scoring.ScoreError, match="version 2 of m gives no finite number for 1 of 2"
    ):
        scoring.Scorer(version).probabilities(np.zeros((2, 96, 96, 3), np.uint8))


def test_nan_judges_no_version(monkeypatch):
    """Catches a plain ValueError, and so a traceback, out of register and promote."""
    patches = labelled_patches(["a", "b"], [0, 1])
    monkeypatch.setattr("src.data.labelled.load_split", lambda _: patches)
    monkeypatch.setattr(
        "src.model.inference.predict_outputs", lambda *_, **__: NAN_OF_TWO.astype(np.float64)
    )
    with pytest.raises(scoring.ScoreError, match="run: dvc repro --force finetune"):
        deciding.score(VERSION, pd.Series(["a", "b"]), 8, None)
