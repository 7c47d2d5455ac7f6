"""Which data a result was made from, in a few characters."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from src import paths
from src.data.labelled import LabelledPatches
from src.system.durable import read_json, sha256_file
from src.system.errors import ProjectError


class OtherData(ProjectError):
    """A model was trained on other data, or on another split, than lie here."""


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


def check_trained_here(*folders: Path) -> None:
    """Refuse models that were trained on other data or another split than those that lie here.

    Another split has other patches in holdout: some of them the model knows by heart. ``folders``
    are those of ``train`` and ``finetune``, whose ``run.json`` says what they were trained on.

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
