"""Curves of the holdout, and pointwise bands from the jackknife that gives every interval."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from src.evaluation.intervals import Jackknife
from src.evaluation.metrics import (
    N_BINS,
    OF_CALLS,
    Floats,
    Scored,
    Statistic,
    UndefinedMetric,
    bin_of,
    ranking,
    ratio,
    scored,
)

GRID = np.linspace(0, 1, 101)
RATES = tuple(metric.name for metric in OF_CALLS)
MAX_POINTS = 500


@dataclass(frozen=True)
class Band:
    """(k,) bounds of a curve at k places; NaN where the curve is undefined, 0 or 1."""

    low: Floats
    high: Floats


def roc_curve(patches: Scored) -> tuple[Floats, Floats]:
    """False and true positive rate at each distinct score, from (0, 0) to (1, 1)."""
    tumour, above = _counts_above(patches)
    normal = above - tumour
    return thinned(np.append(0.0, normal / normal[-1]), np.append(0.0, tumour / tumour[-1]))


def precision_recall_curve(patches: Scored) -> tuple[Floats, Floats]:
    """Recall and precision at each distinct score, by rising recall."""
    tumour, above = _counts_above(patches)
    return thinned(tumour / tumour[-1], tumour / above)


def _counts_above(patches: Scored) -> tuple[Floats, Floats]:
    """(m,) tumour patches, and all, at or above each distinct score."""
    tumour, above = ranking(patches).counts_above(np.ones((1, len(patches.labels))))
    return tumour[0], above[0]


def thinned(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """At most ``MAX_POINTS`` points of a curve, evenly spaced in its own order, ends kept."""
    if len(x) <= MAX_POINTS:
        return x, y
    kept = np.linspace(0, len(x) - 1, MAX_POINTS).round().astype(np.intp)
    return x[kept], y[kept]


def curve_bands(
    labels: ArrayLike, probabilities: ArrayLike, groups: ArrayLike, *, confidence: float
) -> Mapping[str, Band]:
    """Bands of the holdout curves by name; all NaN where there are too few groups.

    ``roc``: sensitivity at each false positive rate of ``GRID``; ``precision_recall``: precision
    at each recall of ``GRID``; each of ``RATES`` at each threshold of ``GRID``; ``reliability``:
    share of tumour in each bin of ECE.
    """
    patches = scored(labels, probabilities)
    in_bin = (bin_of(patches.probabilities)[:, None] == np.arange(N_BINS)).astype(np.float64)
    tumour_in_bin = in_bin * patches.labels[:, None]
    curves: Mapping[tuple[str, ...], Statistic] = {
        ("roc", "precision_recall"): _roc_and_precision(patches),
        RATES: _rates(patches),
        ("reliability",): lambda weights: ratio(weights @ tumour_in_bin, weights @ in_bin),
    }
    try:
        jackknife = Jackknife(labels, groups)
    except UndefinedMetric:
        sizes = {name: len(GRID) for name in ("roc", "precision_recall", *RATES)}
        sizes["reliability"] = N_BINS
        return {name: Band(*np.full((2, size), np.nan)) for name, size in sizes.items()}
    bands: dict[str, Band] = {}
    for names, statistic in curves.items():
        bounds = jackknife.bands(statistic, confidence=confidence)  # (2, names × places)
        pieces = np.split(bounds, len(names), axis=1)
        bands |= {name: Band(*piece) for name, piece in zip(names, pieces, strict=True)}
    # sensitivity only rises along the curve, so its bounds may too: a value next to 1 has a very
    # wide interval on the logit scale, which would cut a gap into the band
    low, high = bands["roc"].low, bands["roc"].high
    bands["roc"] = Band(np.fmax.accumulate(low), np.fmin.accumulate(high[::-1])[::-1])
    return bands


def _roc_and_precision(patches: Scored) -> Statistic:
    """(b, n) → (b, 202): sensitivity by false positive rate, then precision by recall."""
    ranked = ranking(patches)

    def of_row(tumour: Floats, above: Floats) -> Floats:
        normal = above - tumour
        roc = np.interp(GRID, np.append(0, normal / normal[-1]), np.append(0, tumour / tumour[-1]))
        # precision where each recall is first reached; 1e-9: 0.3 × 10 is a hair above 3
        places = np.searchsorted(tumour, GRID * tumour[-1] - 1e-9)
        # the best-ranked patches may all be left out
        places = np.maximum(places, np.searchsorted(above, 0, side="right"))
        return np.concatenate([roc, tumour[places] / above[places]])

    return lambda weights: np.stack(
        [of_row(*rows) for rows in zip(*ranked.counts_above(weights), strict=True)]
    )


def _rates(patches: Scored) -> Statistic:
    """(b, n) → (b, 505): each of ``RATES`` at each threshold."""
    is_called = (patches.scores[:, None] >= GRID).astype(np.float64)  # (n, 101)
    is_found = is_called * patches.labels[:, None]

    def statistic(weights: Floats) -> Floats:
        found, called = weights @ is_found, weights @ is_called  # (b, 101)
        n_tumour = (weights @ patches.labels)[:, None]
        alarms, missed = called - found, n_tumour - found
        cleared = weights.sum(axis=1, keepdims=True) - called - missed
        rates = {
            "sensitivity": ratio(found, found + missed),
            "specificity": ratio(cleared, cleared + alarms),
            "ppv": ratio(found, called),
            "npv": ratio(cleared, cleared + missed),
            "f1": ratio(2 * found, 2 * found + alarms + missed),
        }
        return np.concatenate([rates[name] for name in RATES], axis=1)

    return statistic
