"""Weights of the two classes in the loss, against class imbalance."""

from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from src import params
from src.system.errors import ProjectError


class OneClassOnly(ProjectError):
    """Balanced weights need patches of both classes."""


@dataclass(frozen=True)
class ClassWeights:
    """Factor of each class in the training loss; both > 0."""

    normal: float
    tumour: float

    def per_patch(self, labels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Weights (n,) float32 for labels (n,) of 0 and 1."""
        return np.where(labels == 1, self.tumour, self.normal).astype(np.float32)

    def as_dict(self) -> dict[str, float]:
        """For JSON and MLflow."""
        return asdict(self)


def class_weights(
    labels: NDArray[np.uint8], setting: Literal["balanced", "none"] | params.ClassWeights
) -> ClassWeights:
    """``balanced`` is n / (2 · n_class), as in scikit-learn: 60 normal, 40 tumour give 0.833, 1.25.

    ``none`` gives 1 and 1. Balanced weights average to 1 over the patches, so the learning rate
    keeps its meaning.
    """
    if setting == "none":
        return ClassWeights(normal=1.0, tumour=1.0)
    if isinstance(setting, params.ClassWeights):
        return ClassWeights(normal=setting.normal, tumour=setting.tumour)
    n_tumour = int(np.count_nonzero(labels))
    n_normal = len(labels) - n_tumour
    if not n_tumour or not n_normal:
        raise OneClassOnly(
            f"balanced class weights need both classes (got {n_normal:,} normal, "
            f"{n_tumour:,} tumour in train); check the split"
        )
    n = len(labels)
    return ClassWeights(normal=n / (2 * n_normal), tumour=n / (2 * n_tumour))
