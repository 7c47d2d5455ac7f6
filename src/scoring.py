"""A verified version as what it is used for: patches in, probabilities and decisions out.

The one way in which ``predict --input`` and the server score, so that they agree.
"""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from src.params import RuntimeParams
from src.system.determinism import start_tensorflow
from src.system.errors import ProjectError

if TYPE_CHECKING:
    from src.tracking.registry import VersionFiles

DECISIONS = ("normal", "tumour")


class ScoreError(ProjectError):
    """A model answers with what is no probability."""


def start(runtime: RuntimeParams) -> None:
    """Start TensorFlow for scores: without TF32, so that they are the same wherever they are made.

    For every command that scores, verifies or serves, ``evaluate`` included.
    """
    start_tensorflow(runtime, seed=0, tf32=False)  # nothing random happens: any seed will do


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


class Scorer:
    """Scores patches with one version.

    Parameters
    ----------
    version
        Verified and loaded.

    Raises
    ------
    ContractError
        The version expects other input than this code gives, or answers otherwise.
    """

    def __init__(self, version: "VersionFiles") -> None:
        from src.model.final import check_contract
        from src.model.inference import forward_pass

        check_contract(version.contract, version.model)
        self._called = f"version {version.version} of {version.name}"
        self.threshold = float(version.operating_point["threshold"])
        self._forward = forward_pass(version.model)

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

    def decisions(self, probabilities: NDArray[np.float64]) -> list[str]:
        """``tumour`` at or above the stored threshold, ``normal`` below it."""
        return [DECISIONS[int(p >= self.threshold)] for p in probabilities]
