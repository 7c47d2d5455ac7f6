"""Do train, val and holdout look alike? Colour and class balance of each, and how far they differ.

A shift is the difference of a split's mean from train's, in standard deviations over all patches
(the standardised mean difference; above about 0.25 groups count as unbalanced: Stuart 2010,
Statistical Science 25:1).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from src.data.optical_density import MEAN_COLUMNS, stain_densities
from src.data.schemas import SPLITS

LARGE_SHIFT = 0.25
PERCENTILES = (5, 25, 50, 75, 95)

FEATURES = {
    "haematoxylin": "haematoxylin, mean optical density",
    "eosin": "eosin, mean optical density",
    "structure": "structure, spread of density",
}


@dataclass(frozen=True)
class Shift:
    """The largest difference found: which split from train, in what, by how much."""

    split: str
    feature: str
    standardised: float

    @property
    def is_large(self) -> bool:
        """Whether it exceeds ``LARGE_SHIFT``."""
        return abs(self.standardised) > LARGE_SHIFT


def split_features(patches: pd.DataFrame) -> pd.DataFrame:
    """``FEATURES`` of n patches that have moments of optical density; index as given."""
    stains = stain_densities(patches[list(MEAN_COLUMNS)].to_numpy(dtype=np.float64))
    variances = patches[["od_cov_rr", "od_cov_gg", "od_cov_bb"]].to_numpy(dtype=np.float64)
    spread = np.sqrt(np.maximum(variances, 0).mean(axis=1))
    return pd.DataFrame(
        {"haematoxylin": stains[:, 0], "eosin": stains[:, 1], "structure": spread},
        index=patches.index,
    )


def largest_shift(features: pd.DataFrame, splits: pd.Series) -> Shift:
    """Over val and holdout and all features; ``splits`` (n,) of the patches of ``features``."""
    found = [
        Shift(split, name, _standardised(features[name], splits, split))
        for split in SPLITS[1:]
        for name in features.columns
    ]
    return max(found, key=lambda shift: abs(shift.standardised))


def report_comparison(
    features: pd.DataFrame, splits: pd.Series, labels: NDArray[np.uint8], groups: pd.Series
) -> dict[str, Any]:
    """Counts, tumour fraction and feature percentiles of each split, and the largest shift.

    All arguments are of the same n patches.
    """
    shift = largest_shift(features, splits)
    return {
        "splits": {
            split: _describe(features, (splits == split).to_numpy(dtype=bool), labels, groups)
            for split in SPLITS
        },
        "largest_shift": {
            "split": shift.split,
            "feature": shift.feature,
            "standardised": round(shift.standardised, 4),
            "large": shift.is_large,
        },
    }


def _describe(
    features: pd.DataFrame,
    inside: NDArray[np.bool_],
    labels: NDArray[np.uint8],
    groups: pd.Series,
) -> dict[str, Any]:
    return {
        "n_patches": int(inside.sum()),
        "n_groups": int(groups[inside].nunique()),
        "tumour_fraction": round(float(labels[inside].mean()), 6),
        "percentiles": {
            name: [round(float(v), 5) for v in np.percentile(features[name][inside], PERCENTILES)]
            for name in features.columns
        },
    }


def _standardised(values: pd.Series, splits: pd.Series, split: str) -> float:
    spread = float(values.std(ddof=0))
    if spread == 0:
        return 0.0
    apart = values[splits == split].mean() - values[splits == "train"].mean()
    return float(apart / spread)
