"""Which data a result was made from, in a few characters."""

import os
from pathlib import Path
from typing import Any, NamedTuple

from src import paths
from src.data.labelled import LabelledPatches
from src.system.durable import read_json, sha256_file


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


class SplitKind(NamedTuple):
    """What the split kept together, as ``split.json`` says; ``groups_are`` is for people."""

    slide_disjoint: bool
    groups_are: str


def split_kind() -> SplitKind:
    """Whether the split kept every slide on one side, and what its groups are."""
    report = read_json(paths.SPLIT_REPORT)
    return SplitKind(bool(report["slide_disjoint"]), str(report["groups_are"]))


def _dvc_md5(stage: str, lock: Path = paths.ROOT / "dvc.lock") -> str | None:
    # outside `dvc repro` the lock may speak of other data than what lies here
    if "DVC_STAGE" not in os.environ or not lock.is_file():
        return None
    from ruamel.yaml import YAML

    stages = YAML(typ="safe", pure=True).load(lock.read_text(encoding="utf-8"))["stages"]
    outs = stages.get(stage, {}).get("outs", [])
    return str(outs[0]["md5"]) if outs else None
