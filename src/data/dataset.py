"""What a model is trained and judged on: labelled patches by split, and which data that is.

``split.parquet``, one row per labelled patch:

======  ====  ==============================================================
column  type  meaning
======  ====  ==============================================================
id      str   each once
split   str   train, val or holdout
group   str   what stays on one side: a slide, or a stand-in (``split.json``)
======  ====  ==============================================================
"""

from __future__ import annotations

import hashlib
import mmap
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pyarrow import ArrowException
from ruamel.yaml import YAML

from src import paths
from src.data.patches import check_split, open_pixels, read_patches
from src.system.durable import read_json, sha256_file, verify_file
from src.system.errors import ProjectError

SplitName = Literal["train", "val", "holdout"]

SINGLE = "patch:"  # begins the name of a group that has neither slide nor stain cluster

_AGAIN = "run: dvc repro --force split"


class SplitTableError(ProjectError):
    """The table of splits is missing or torn."""


class SplitMismatch(ProjectError):
    """``split.parquet`` and ``patches.parquet`` don't describe the same patches."""


class OtherData(ProjectError):
    """A model was trained on other data, or on another split, than is here."""


@dataclass(frozen=True)
class LabelledPatches:
    """One split, in order of patch id: identities and labels in memory, pixels left on disk.

    Attributes
    ----------
    split : train, val or holdout
    ids : (n,) str, 40 hex digits each
    rows : (n,) int64, the row of each patch in ``pixels``
    labels : (n,) uint8, 0 normal, 1 tumour
    groups : (n,) str
    pixels : (N, 96, 96, 3) uint8, all labelled patches of the archive, memory-mapped
    pixels_sha256 : of the file that holds the pixels; empty without one
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
    patches = read_patches(ingest)
    labelled = patches[patches["subset"] == "train"]
    joined = labelled.merge(read_split(split_file), on="id", how="outer", indicator=True)
    alone = joined[joined["_merge"] != "both"]
    if not alone.empty:
        side = "no split" if alone["_merge"].iloc[0] == "left_only" else "no packed pixels"
        raise SplitMismatch(
            f"{len(alone):,} ids disagree between patches.parquet and {split_file.name}, "
            f"first: {alone['id'].iloc[0]} has {side}; run: dvc repro split"
        )
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


def read_split(path: Path = paths.SPLIT) -> pd.DataFrame:
    """The table of splits, verified against its manifest and checked.

    Raises
    ------
    SplitTableError
        It is missing or torn.
    IntegrityError
        It isn't the file that ``split`` wrote.
    SchemaError
        A column is missing, or holds what it may not.
    """
    if not path.is_file():
        raise SplitTableError(f"table of splits not found: {path}; run: dvc repro split")
    verify_file(path)
    try:
        frame = pd.read_parquet(path)
    except (ArrowException, OSError, ValueError) as error:
        raise SplitTableError(f"not a table of splits: {path} ({error}); {_AGAIN}") from error
    return check_split(frame, path.name, _AGAIN)


def write_split(frame: pd.DataFrame, path: Path) -> None:
    """Check the table of splits and write it; the folder's manifest comes later.

    Raises
    ------
    SchemaError
        A column is missing, or holds what it may not.
    """
    check_split(frame, path.name, "please report this").to_parquet(path, index=False)


def real_groups(groups: pd.Series, group_by: str) -> pd.Series:
    """``groups`` (n,), null where one isn't what ``group_by`` says it is.

    Only where single patches are the groups is a patch of unknown slide or stain one.
    """
    return groups if group_by == "patch" else groups.mask(groups.str.startswith(SINGLE))


class SplitKind(NamedTuple):
    """What the split kept together, as ``split.json`` says; ``groups_are`` is for people."""

    slide_disjoint: bool
    groups_are: str


def split_kind() -> SplitKind:
    """Whether the split kept every slide on one side, and what its groups are."""
    report = read_json(paths.SPLIT_REPORT)
    return SplitKind(bool(report["slide_disjoint"]), str(report["groups_are"]))


def dataset_identity(train: LabelledPatches, val: LabelledPatches) -> dict[str, Any]:
    """Name, digest and size of the data of a training run, as MLflow shows it.

    ``digest`` (at most 36 characters, MLflow's limit) is DVC's own md5 of ``data/ingest`` when the
    pipeline runs the stage, so that it can be looked up in ``dvc.lock``; otherwise the digest of
    ids, pixels and labels that ``ingest`` wrote. ``split`` is the SHA-256 of ``split.parquet``.
    """
    report = read_json(paths.INGEST_REPORT)
    content = str(report["digests"]["train"])
    return {
        "name": str(report["archive"]["name"]),
        "digest": _dvc_md5("ingest") or content,
        "content_digest": content,
        "split_sha256": sha256_file(paths.SPLIT),
        "source": str(paths.INGEST.relative_to(paths.ROOT)),
        "n_train": len(train),
        "n_val": len(val),
    }


def _dvc_md5(stage: str, lock: Path = paths.ROOT / "dvc.lock") -> str | None:
    # outside `dvc repro` the lock may describe other data than what is here
    if "DVC_STAGE" not in os.environ or not lock.is_file():
        return None
    stages = YAML(typ="safe", pure=True).load(lock.read_text(encoding="utf-8"))["stages"]
    outs = stages.get(stage, {}).get("outs", [])
    return str(outs[0]["md5"]) if outs else None


def check_trained_here(*folders: Path) -> None:
    """Refuse models that were trained on other data or another split than is here.

    Another split has other patches in holdout: the model may have been trained on some of them.
    ``folders`` are those of ``train`` and ``finetune``, whose ``run.json`` names their data.

    Raises
    ------
    OtherData
        With the folder, and which of the two differs.
    """
    here = {
        "content_digest": str(read_json(paths.INGEST_REPORT)["digests"]["train"]),
        "split_sha256": sha256_file(paths.SPLIT),
    }
    names = {"content_digest": "other data", "split_sha256": "another split"}
    for folder in folders:
        recorded: Mapping[str, Any] = read_json(folder / "run.json")["record"]["dataset"]
        for key, present in here.items():
            if recorded.get(key) != present:
                raise OtherData(
                    f"{folder.name} was trained on {names[key]} ({key} "
                    f"{str(recorded.get(key))[:12]}…) than lies here ({present[:12]}…): it may "
                    "know the holdout by heart; run: dvc repro"
                )
