"""How many models were judged on holdouts of an archive, and what that costs the next verdict.

Judge enough equal models on one holdout and one of them wins by chance. Every model judged is a
look; the k-th is decided at an error rate of α / (k (k + 1)), which adds up to less than α over any
number of looks, however alike the models are (union bound; ``benchmarks/gate.py`` simulates it).
Looks are counted per archive, not per holdout: another split of the same patches leaves out what
the champion was trained on, and what remains was in its old holdout.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Look:
    """The ``number``-th model, from 1, that is judged on a holdout of an archive.

    ``archive`` is the digest of the archive's labelled patches.
    """

    number: int
    archive: str

    def confidence(self, overall: float) -> float:
        """Confidence of this look's interval, where all looks together keep ``overall``."""
        return 1 - (1 - overall) / (self.number * (self.number + 1))

    def __str__(self) -> str:
        """In words, to follow a verdict."""
        return f"model {self.number:,} judged on this archive"
