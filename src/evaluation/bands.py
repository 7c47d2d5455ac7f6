"""Curves with pointwise bands, from the same jackknife over groups as every interval."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from src.evaluation.curves import Floats, ranking
from src.evaluation.intervals import Jackknife
from src.evaluation.metrics import N_BINS, Scored, Statistic, UndefinedMetric, bin_of, scored

GRID = np.linspace(0, 1, 101)
RATES = ("sensitivity", "specificity", "ppv", "npv", "f1")


@dataclass(frozen=True)
class Band:
    """(k,) bounds of a curve at k places; NaN where the curve is undefined, 0 or 1."""

    low: Floats
    high: Floats


def curve_bands(
    labels: ArrayLike,
    probabilities: ArrayLike,
    groups: ArrayLike,
    *,
    confidence: float,
) -> Mapping[str, Band]:
    """Bands of the holdout curves.

    ``roc``: sensitivity at each false positive rate of ``GRID``; ``precision_recall``: precision
    at each recall of ``GRID``; ``reliability``: share of tumour in each bin of ECE; and each of
    ``RATES`` at each threshold of ``GRID``.; all NaN where there
    are too few groups for an interval.
    """
    patches = scored(labels, probabilities)
    names = ("roc", "precision_recall", *RATES)
    try:
        jackknife = Jackknife(labels, groups)
    except UndefinedMetric:  # too few groups: curves without bands
        nothing = {name: Band(*np.full((2, len(GRID)), np.nan)) for name in names}
        return nothing | {"reliability": Band(*np.full((2, N_BINS), np.nan))}
    curves = jackknife.bands(_curves(patches), confidence=confidence)
    pieces = np.split(curves, len(names), axis=1)
    bands = {name: Band(*piece) for name, piece in zip(names, pieces, strict=True)}
    return bands | {
        "reliability": Band(*jackknife.bands(_reliability(patches), confidence=confidence))
    }


def _curves(patches: Scored) -> Statistic:
    """ROC, precision and the rates, a block of ``GRID`` each, from one ranking."""
    ranked = ranking(patches.labels, patches.scores)
    # of the distinct scores, falling, how many reach each threshold; 0: none
    n_reached = np.searchsorted(-np.unique(patches.scores)[::-1], -GRID, side="right")

    def statistic(weights: Floats) -> Floats:
        tumour, above = (
            np.concatenate([np.zeros((len(weights), 1)), counts], axis=1)
            for counts in ranked.counts_above(weights)
        )
        blocks = [_roc(tumour, above - tumour), _precision(tumour, above)]
        return np.concatenate([*blocks, _rates(tumour, above, n_reached)], axis=1)

    return statistic


def _roc(tumour: Floats, normal: Floats) -> Floats:
    """(b, m) counts from 0 to all → (b, 101) sensitivity at each false positive rate."""
    return np.stack(
        [np.interp(GRID, n / n[-1], t / t[-1]) for n, t in zip(normal, tumour, strict=True)]
    )


def _precision(tumour: Floats, above: Floats) -> Floats:
    """(b, m) counts → (b, 101) precision where each recall is first reached."""
    rows = []
    for found, called in zip(tumour, above, strict=True):
        # 1e-9: 0.3 × 10 is a hair above 3
        places = np.searchsorted(found, GRID * found[-1] - 1e-9)
        places = np.maximum(places, np.searchsorted(called, 0, side="right"))
        rows.append(found[places] / called[places])
    return np.stack(rows)


def _rates(tumour: Floats, above: Floats, n_reached: NDArray[np.intp]) -> Floats:
    """(b, m) counts → (b, 505): each of ``RATES`` at each threshold."""
    found, called = tumour[:, n_reached], above[:, n_reached]
    n_tumour, n_all = tumour[:, -1:], above[:, -1:]
    alarms, missed = called - found, n_tumour - found
    cleared = n_all - n_tumour - alarms
    return np.concatenate(
        [
            _ratio(found, found + missed),
            _ratio(cleared, cleared + alarms),
            _ratio(found, called),
            _ratio(cleared, cleared + missed),
            _ratio(2 * found, 2 * found + alarms + missed),
        ],
        axis=1,
    )


def _reliability(patches: Scored) -> Statistic:
    in_bin = (bin_of(patches.probabilities)[:, None] == np.arange(N_BINS)).astype(np.float64)
    tumour_in_bin = in_bin * patches.labels[:, None]
    return lambda weights: _ratio(weights @ tumour_in_bin, weights @ in_bin)


def _ratio(numerator: Floats, denominator: Floats) -> Floats:
    undefined = np.full(numerator.shape, np.nan)
    ratio: Floats = np.divide(numerator, denominator, out=undefined, where=denominator > 0)
    return ratio
