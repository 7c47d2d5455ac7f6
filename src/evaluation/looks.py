"""How often a holdout was looked at, and what that costs the next verdict.

Judge enough equal models on one holdout and one of them wins by chance. Every model judged is a
look; the k-th is decided at an error rate of α / (k (k + 1)), which adds up to less than α over any
number of looks, however alike the models are (union bound; ``benchmarks/gate.py`` simulates it).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import pandas as pd


@dataclass(frozen=True)
class Look:
    """One model's turn at a holdout: the ``number``-th model that was judged on it, from 1."""

    number: int
    holdout_sha256: str

    def confidence(self, overall: float) -> float:
        """Confidence of this look's interval, where all looks together keep ``overall``."""
        return 1 - (1 - overall) / (self.number * (self.number + 1))

    def __str__(self) -> str:
        """In words, to follow a verdict."""
        return f"model {self.number:,} judged on this holdout"


def holdout_sha256(holdout: pd.DataFrame) -> str:
    """Digest of which patches are in holdout, with which labels; ``holdout`` has sha256, label."""
    rows = sorted(
        f"{p} {label}" for p, label in zip(holdout["sha256"], holdout["label"], strict=True)
    )
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()
