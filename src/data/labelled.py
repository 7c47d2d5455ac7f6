"""The labelled patches of one split: identities and labels in memory, pixels left on disk."""

import hashlib
import mmap
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from src import paths
from src.system.durable import verify_file
from src.system.errors import ProjectError

if TYPE_CHECKING:
    import pandas as pd

SplitName = Literal["train", "val", "holdout"]


class SplitMismatch(ProjectError):
    """``split.parquet`` and ``patches.parquet`` don't speak of the same patches."""


@dataclass(frozen=True)
class LabelledPatches:
    """One split, in order of patch id.

    Attributes
    ----------
    split : train, val or holdout
    ids : (n,) str, 40 hex digits each
    rows : (n,) int64, where each patch lies in ``pixels``
    labels : (n,) uint8, 0 normal, 1 tumour
    groups : (n,) str
    pixels : (N, 96, 96, 3) uint8, all labelled patches of the archive, memory-mapped
    pixels_sha256 : of the file the pixels lie in; empty where they lie in none
    """

    split: str
    ids: NDArray[np.str_]
    rows: NDArray[np.int64]
    labels: NDArray[np.uint8]
    groups: NDArray[np.str_]
    pixels: NDArray[np.uint8]
    pixels_sha256: str = ""

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, positions: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Pixels (k, 96, 96, 3) of the patches at ``positions`` (k,) of the split."""
        taken = self.pixels[self.rows[positions]]
        if isinstance(self.pixels.base, mmap.mmap):
            # pages once read stay in the page cache, but not in this process's memory
            self.pixels.base.madvise(mmap.MADV_DONTNEED)
        return taken

    @property
    def digest(self) -> str:
        """SHA-256 of which pixels these are, in which order."""
        pixels = self.pixels_sha256 or hashlib.sha256(self.pixels.tobytes()).hexdigest()
        return hashlib.sha256(pixels.encode() + self.rows.astype("<i8").tobytes()).hexdigest()


def load_split(
    split: SplitName, *, ingest: Path = paths.INGEST, split_file: Path = paths.SPLIT
) -> LabelledPatches:
    """Join ``split.parquet`` with ``patches.parquet`` and open the packed pixels.

    Raises
    ------
    SplitMismatch
        A labelled patch has no split, a split names an unknown patch, or the split is empty.
    """
    from src.data.packed import open_pixels, read_patches
    from src.data.split_table import read_split

    patches = read_patches(ingest)
    labelled = patches[patches["subset"] == "train"]
    joined = labelled.merge(read_split(split_file), on="id", how="outer", indicator=True)
    _check_join(joined, split_file)
    chosen = joined[joined["split"] == split].sort_values("id")
    if chosen.empty:
        raise SplitMismatch(f"split {split} is empty in {split_file.name}; run: dvc repro split")
    return LabelledPatches(
        split=split,
        ids=chosen["id"].to_numpy(dtype=np.str_),
        rows=chosen["row"].to_numpy(dtype=np.int64),
        labels=chosen["label"].to_numpy(dtype=np.uint8),
        groups=chosen["group"].to_numpy(dtype=np.str_),
        pixels=open_pixels("train", ingest),
        pixels_sha256=verify_file(ingest / "train.npy"),
    )


def _check_join(joined: "pd.DataFrame", split_file: Path) -> None:
    alone = joined[joined["_merge"] != "both"]
    if not alone.empty:
        side = "no split" if alone["_merge"].iloc[0] == "left_only" else "no packed pixels"
        raise SplitMismatch(
            f"{len(alone):,} ids disagree between patches.parquet and {split_file.name}, "
            f"first: {alone['id'].iloc[0]} has {side}; run: dvc repro split"
        )
