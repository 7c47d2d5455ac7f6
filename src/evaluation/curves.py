"""ROC and precision-recall curves, from patches sorted once by score.

Patches of equal score enter together, so ties make one point of a curve and row order is
irrelevant.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Ranking:
    """The order of n patches by falling score.

    ``order`` (n,) sorts them, ``labels`` (n,) is 1.0 for tumour in that order, and ``ends`` (m,)
    holds the last place of each of the m distinct scores.
    """

    order: NDArray[np.intp]
    labels: Floats
    ends: NDArray[np.intp]

    def counts_above(self, weights: Floats) -> tuple[Floats, Floats]:
        """Weight of the tumour patches, and of all, that score at least each distinct score.

        ``weights`` is (b, n) in the patches' own order, one row per weighting; both results (b, m).
        """
        ranked = np.take(weights, self.order, axis=1)
        above = _cumulative(ranked, self.ends)
        ranked *= self.labels
        return _cumulative(ranked, self.ends), above


def ranking(labels: NDArray[np.bool_], scores: Floats) -> Ranking:
    """Sort n patches by falling score."""
    order = np.argsort(-scores, kind="stable")
    falls = np.diff(scores[order]) < 0
    ends = np.append(np.flatnonzero(falls), len(scores) - 1)
    return Ranking(order=order, labels=labels[order].astype(np.float64), ends=ends)


def roc_curve(labels: NDArray[np.bool_], scores: Floats) -> tuple[Floats, Floats]:
    """False and true positive rate at each distinct score, from (0, 0) to (1, 1)."""
    tumour, above = _counts_above_unweighted(labels, scores)
    normal = above - tumour
    return np.append(0.0, normal / normal[-1]), np.append(0.0, tumour / tumour[-1])


def precision_recall_curve(labels: NDArray[np.bool_], scores: Floats) -> tuple[Floats, Floats]:
    """Recall and precision at each distinct score, by rising recall."""
    tumour, above = _counts_above_unweighted(labels, scores)
    return tumour / tumour[-1], tumour / above


def thinned(x: Floats, y: Floats, *, max_points: int) -> tuple[Floats, Floats]:
    """At most ``max_points`` points of a curve, evenly spaced in its own order, ends kept."""
    if len(x) <= max_points:
        return x, y
    kept = np.linspace(0, len(x) - 1, max_points).round().astype(np.intp)
    return x[kept], y[kept]


def _counts_above_unweighted(labels: NDArray[np.bool_], scores: Floats) -> tuple[Floats, Floats]:
    tumour, above = ranking(labels, scores).counts_above(np.ones((1, len(scores))))
    return tumour[0], above[0]


def _cumulative(ranked: Floats, ends: NDArray[np.intp]) -> Floats:
    # sums of whole numbers below 2**53 are exact in float64, so the order of adding is irrelevant
    sums = np.cumsum(ranked, axis=1)
    return sums if len(ends) == sums.shape[1] else sums[:, ends]
