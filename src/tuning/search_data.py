"""The patches a search sees: train, or a subset of it, and val; never holdout."""

import hashlib
from dataclasses import dataclass, replace

import numpy as np

from src.data.dataset import LabelledPatches


@dataclass(frozen=True)
class SearchData:
    """The patches a search sees: (a subset of) train, and val."""

    train: LabelledPatches
    val: LabelledPatches

    @property
    def digest(self) -> str:
        """SHA-256 of pixels, order and labels of both."""
        digest = hashlib.sha256()
        for patches in (self.train, self.val):
            digest.update(patches.digest.encode() + patches.labels.tobytes())
        return digest.hexdigest()


def load_data(*, subset: int | None, seed: int) -> SearchData:
    """Train, or ``subset`` patches of it, and val; holdout is never opened."""
    from src.data.dataset import load_split

    train = load_split("train")
    chosen = train if subset is None else subset_of(train, subset, seed=seed)
    return SearchData(chosen, load_split("val"))


def subset_of(patches: LabelledPatches, n: int, *, seed: int) -> LabelledPatches:
    """``n`` patches drawn at random, with the share of each class kept; all where there are fewer.

    The order of ids stays.
    """
    if n >= len(patches):
        return patches
    rng = np.random.default_rng(seed)
    is_tumour = patches.labels == 1
    n_tumour = min(max(1, round(n * float(is_tumour.mean()))), n - 1)
    chosen = np.sort(
        np.concatenate(
            [
                rng.choice(np.flatnonzero(is_tumour), n_tumour, replace=False),
                rng.choice(np.flatnonzero(~is_tumour), n - n_tumour, replace=False),
            ]
        )
    )
    columns = {name: getattr(patches, name)[chosen] for name in ("ids", "rows", "labels", "groups")}
    return replace(patches, **columns)
