"""The chain from a submission back to the archive, compared digest by digest.

Each link names two ends that have to agree. ``lineage.json`` names the version, the version's
evidence its runs, its data and its split, and each run's record the commit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from src import paths
from src.system.durable import read_json, sha256_file, verify_folder
from src.system.errors import ProjectError, VerificationError
from src.tracking.lineage import UNKNOWN, has_commit
from src.tracking.promotions import champion_moves, evidence_file
from src.tracking.records import RunRecord, flat_metrics, run_params, run_tags
from src.tracking.registry import Version, find_version
from src.tracking.runs import find_run
from src.tracking.store import TrackingError

_MAX_NAMED = 5


@dataclass(frozen=True)
class Link:
    """One comparison. ``what`` names the file or entry, ``said`` what was found of it.

    ``missing`` tells an end that isn't there from two that disagree.
    """

    what: str
    state: Literal["holds", "changed", "missing"]
    said: str


Part = tuple[str, list[Link]]
"""Title, and its links in the order of the chain."""


def follow(submission: Path, archive: Path) -> list[Part]:
    """Every part of the chain behind a submission, ``archive`` being the one of params.yaml."""
    lineage_file = submission.with_name(paths.LINEAGE.name)
    try:
        verify_folder(submission.parent)
        lineage = read_json(lineage_file)
        table = sha256_file(submission)
        parts = [("submission", [_same(submission.name, table, lineage["submission"]["sha256"])])]
        model = lineage["model"]
        version = find_version(model["name"], int(model["version"]))
    except TrackingError as error:
        return [*parts, ("registry", [Link("registry", "missing", str(error))])]
    except (ProjectError, KeyError, TypeError) as error:
        return [("submission", [Link(submission.name, "changed", str(error))])]
    parts.append((f"registry: {version}", list(_version_links(version, lineage))))
    try:
        evidence = version.evidence
    except (VerificationError, TrackingError):
        return parts  # its broken files are named above, and the rest of the chain is in them
    parts.append(("runs", list(_run_links(evidence))))
    parts.append(("code", list(_code_links(lineage, evidence))))
    parts.append(("data", list(_data_links(lineage, evidence, archive))))
    return parts


def _version_links(version: Version, lineage: Mapping[str, Any]) -> Iterator[Link]:
    """Tags, every file, and what the promotion log says of the version."""
    model = lineage["model"]
    for key in ("run_id", "manifest_sha256"):
        yield _same(f"tag {key}", version.tags.get(key), model[key])
    try:
        files = version.verify()
    except (VerificationError, TrackingError) as error:
        yield Link("files", "changed", str(error))
        return
    yield Link("files", "holds", f"all {len(files)} are those registered")
    yield _same("model.keras", version.model_sha256, model["model_sha256"])
    yield _same("operating point", lineage["operating_point"], version.operating_point)
    if model["role"] != "champion":
        yield Link("promotion log", "holds", f"the version predicts as {model['role']}")
        return
    try:
        moves = champion_moves(version.name)
    except ProjectError as error:
        yield Link("promotion log", "changed", str(error))
        return
    if not moves or moves[-1].to_version != version.number:
        last = f"version {moves[-1].to_version} since {moves[-1].utc}" if moves else "none"
        said = f"the champion is {last}, not version {version.number}; run: dvc repro register"
        yield Link("promotion log", "changed", said)
        return
    last_move = moves[-1]
    forced = ", against the rules" if last_move.forced else ""
    said = f"champion since {last_move.utc}{forced}: {last_move.why}"
    yield Link("promotion log", "holds", said)
    if last_move.evidence_sha256 is not None:
        file = evidence_file(version.name, last_move.evidence_sha256)
        what = "evidence of the promotion"
        if file.is_file():
            yield _same(what, sha256_file(file), last_move.evidence_sha256)
        else:
            yield Link(what, "missing", f"{file.name} is gone")


def _run_links(evidence: Mapping[str, Any]) -> Iterator[Link]:
    """What MLflow says of the runs that made the model, against the records in the evidence.

    Data and split by each run's own record are those the version was evaluated on: evaluated on
    another split, it would be judged on patches it was trained on.
    """
    run_id = evidence["run_id"]
    for folder in ("finetuned", "head"):
        record = RunRecord(**evidence["runs"][folder]["record"])
        run = None if run_id is None else find_run(run_id)
        if run is None:
            said = "is not in MLflow (mlflow.db deleted?); run: dvc repro register"
            yield Link(f"run of {folder}: {run_id}", "missing", said)
            return
        yield _same(f"run of {folder}: {run_id[:8]}", run.info.status, "FINISHED")
        tags = run_tags(record)
        if run.data.tags.get("restored") == "true":
            tags.pop("head_run_id", None)  # the head's run was restored under another id
        if folder == "finetuned":
            tags["final_weights_sha256"] = evidence["final_weights_sha256"]
            yield _all_same("metrics", run.data.metrics, flat_metrics(evidence["metrics"]))
        yield _all_same(f"tags of {folder}", run.data.tags, tags)
        yield _all_same(f"parameters of {folder}", run.data.params, run_params(record))
        for key, expected in (
            ("content_digest", evidence["data"]["train"]),
            ("split_sha256", evidence["split_sha256"]),
        ):
            yield _same(f"{key} of {folder}", record.dataset.get(key), expected)
        run_id = run.data.tags.get("head_run_id")


def _code_links(lineage: Mapping[str, Any], evidence: Mapping[str, Any]) -> Iterator[Link]:
    """The commits of training, fine-tuning and prediction, as git has them."""
    origins = {"predict": lineage["code"]}
    for stage, folder in (("finetune", "finetuned"), ("train", "head")):
        origins[stage] = evidence["runs"][folder]["record"]["origin"]
    for stage, origin in origins.items():
        commit, what = origin.get("git_commit", UNKNOWN), f"code of {stage}"
        if commit == UNKNOWN:
            yield Link(what, "missing", "was run outside a git repository")
        elif not has_commit(commit):
            said = f"commit {commit[:12]}… is not in this repository; run: git fetch"
            yield Link(what, "missing", said)
        elif origin.get("git_dirty") != "false":
            said = f"had changes beyond commit {commit[:12]}…; commit, then run the stage again"
            yield Link(what, "changed", said)
        else:
            yield Link(what, "holds", f"commit {commit[:12]}…")


def _data_links(
    lineage: Mapping[str, Any], evidence: Mapping[str, Any], archive: Path
) -> Iterator[Link]:
    """The data, the split and the archive that are here, against those of the version."""
    try:
        n_files = len(verify_folder(paths.INGEST))
        here = read_json(paths.INGEST_REPORT)
    except ProjectError as error:
        yield Link("data/ingest", "changed", str(error))
        return
    yield Link("data/ingest", "holds", f"all {n_files} files are those ingest wrote")
    for subset, digest in lineage["data"].items():
        yield _same(f"digest of {subset}", here["digests"].get(subset), digest)
    yield _same("training data", here["digests"]["train"], evidence["data"]["train"])
    if paths.SPLIT.is_file():
        yield _same("split.parquet", sha256_file(paths.SPLIT), evidence["split_sha256"])
    else:
        yield Link("split.parquet", "missing", "is gone; run: dvc repro split")
    recorded, what = evidence["archive"], f"archive {evidence['archive']['name']}"
    if recorded.get("sha256") is None:
        said = f"a {recorded.get('kind')} has no digest of its own; use the zip"
        yield Link(what, "missing", said)
    elif not archive.is_file():
        yield Link(what, "missing", f"is not where ingest.archive points ({archive})")
    else:
        yield _same(what, sha256_file(archive), recorded["sha256"])


def _same(what: str, found: object, expected: object) -> Link:
    if found == expected:
        return Link(what, "holds", _short(found))
    return Link(what, "changed", f"is {_short(found)}, recorded was {_short(expected)}")


def _all_same(what: str, found: Mapping[str, Any], expected: Mapping[str, Any]) -> Link:
    """Whether ``found`` has every entry of ``expected``."""
    names = sorted(name for name, value in expected.items() if found.get(name) != value)
    if not names:
        return Link(what, "holds", f"all {len(expected)} as recorded")
    more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
    return Link(what, "changed", f"not as recorded: {', '.join(names[:_MAX_NAMED])}{more}")


def _short(value: object) -> str:
    text = str(value)
    is_digest = len(text) >= 32 and all(c in "0123456789abcdef" for c in text)
    return f"{text[:12]}…" if is_digest else text
