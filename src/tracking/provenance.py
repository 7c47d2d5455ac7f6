"""The links from a submission to its version, runs, parameters and code, each checked."""

import hashlib
import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from src import paths
from src.system.durable import MANIFEST, read_json, sha256_file
from src.system.errors import ProjectError
from src.system.links import (
    Link,
    changed,
    holds,
    is_listed,
    manifest_entries,
    missing,
    same,
)
from src.tracking.aliases import read_log
from src.tracking.lineage import UNKNOWN
from src.tracking.logged_models import MODEL_FILE, odd_files
from src.tracking.promotion_log import Entry, champion_moves
from src.tracking.records import RunRecord, flat_metrics, run_params, run_tags
from src.tracking.registry import VersionFolder, version_folder
from src.tracking.store import TrackingError, connect, is_absent, reporting

if TYPE_CHECKING:
    from mlflow.entities import Run

_MAX_NAMED = 5


def submission_links(submission: Path, lineage_file: Path) -> list[Link]:
    """The table, its lineage and their manifest: each is named by another of the three."""
    manifest_file, named = submission.with_name(MANIFEST), _named_table(lineage_file)
    table = sha256_file(submission)
    is_named = named == (table, submission.read_bytes().count(b"\n") - 1)
    entries = manifest_entries(manifest_file)
    if entries is None or set(entries) != {submission.name, lineage_file.name}:
        csv = (holds if is_named else changed)(
            submission.name, f"{'as' if is_named else 'not as'} {lineage_file.name} says"
        )
        broken = f"{MANIFEST} of the submission"
        return [csv, changed(broken, "is gone or was changed; run: dvc repro --force predict")]
    is_table_listed = is_listed(submission, entries[submission.name])
    is_lineage_listed = is_listed(lineage_file, entries[lineage_file.name])
    if is_named and is_table_listed:
        csv = holds(submission.name, f"sha256 {table[:12]}…, {entries[submission.name][1]:,} bytes")
    elif is_named or is_table_listed:
        other = MANIFEST if is_named else lineage_file.name
        csv = changed(submission.name, f"is not the one that {other} names: {other} was changed")
    else:
        csv = changed(submission.name, f"is not the one that {lineage_file.name} names")
    if is_lineage_listed:
        lineage = holds(lineage_file.name, f"as {MANIFEST} says")
    else:
        lineage = changed(lineage_file.name, f"has other bytes than {MANIFEST} says")
    return [csv, lineage]


def _named_table(lineage_file: Path) -> tuple[str, int] | None:
    """SHA-256 and number of rows by ``lineage.json``; None where it doesn't say them."""
    try:
        named = read_json(lineage_file)["submission"]
        return str(named["sha256"]), int(named["n_rows"])
    except (ProjectError, KeyError, TypeError, ValueError):
        return None


def version_links(model: Mapping[str, Any], point: Mapping[str, Any]) -> list[Link]:
    """The registered version: tags, every file, and the promotion log's word on it.

    ``model`` and ``point`` are the entries ``model`` and ``operating_point`` of the lineage.
    """
    name, number = model["name"], int(model["version"])
    try:
        version = version_folder(name, number)
    except TrackingError as error:
        return [missing(f"{name} version {number}", str(error))]
    tags = [
        same(f"tag {key}", version.tags.get(key), model[key], source="lineage.json")
        for key in ("run_id", "manifest_sha256")
    ]
    files = file_links(version.folder, manifest_sha256=model["manifest_sha256"])
    links = [*tags, *files]
    if all(link.state == "holds" for link in files):
        served = read_json(version.folder / "evidence/operating_point.json")
        links.append(
            same(
                MODEL_FILE,
                sha256_file(version.folder / MODEL_FILE),
                model["model_sha256"],
                source="lineage.json",
            )
        )
        links.append(same("operating point", point, served, source="the version"))
    return [*links, *_log_links(name, version, model["role"])]


def file_links(folder: Path, *, manifest_sha256: str) -> list[Link]:
    """A model folder: one link where all its files are those registered, else one a wrong file."""
    said = {
        "missing": (missing, "of the version is gone"),
        "unlisted": (changed, "was not among the version's files"),
        "changed": (changed, "of the version has other bytes than registered"),
    }
    links = []
    for name, oddity in odd_files(folder, manifest_sha256=manifest_sha256):
        link, words = said[oddity]
        links.append(link(name, words))
    return links or [holds("files", "all are those registered")]


def _log_links(name: str, version: VersionFolder, role: str) -> list[Link]:
    reading = read_log(name)
    links = [changed("promotion log", problem) for problem in reading.problems]
    moves = champion_moves(reading.entries)
    made_champion = [move for move in moves if move.to_version == version.version]
    if role != "champion":
        links.append(holds("promotion log", f"the version predicts as {role}"))
    elif not made_champion:
        links.append(missing("promotion log", f"knows no champion version {version.version}"))
    elif moves[-1] is not made_champion[-1]:
        links.append(changed("promotion log", _dethroned(version.version, moves[-1])))
    elif not links:
        last = moves[-1]
        forced = ", against the rules" if last.forced else ""
        links.append(holds("promotion log", f"champion since {last.utc}{forced}: {last.why}"))
    if made_champion and made_champion[-1].evidence_sha256 is not None:
        links.append(_evidence_link(name, made_champion[-1].evidence_sha256))
    return links


def _dethroned(version: int, last: Entry) -> str:
    now = "none" if last.to_version is None else f"version {last.to_version}"
    return (
        f"version {version} is champion no longer: {now} since {last.utc} ({last.why}); run: "
        "dvc repro --single-item --force register predict"
    )


def _evidence_link(name: str, sha256: str) -> Link:
    file = paths.PROMOTIONS / name / "evidence" / f"{sha256}.json"
    if not file.is_file():
        return missing("evidence of the promotion", f"{file.name} is gone")
    return same("evidence of the promotion", sha256_file(file), sha256, source="the promotion log")


def read_version_evidence(model: Mapping[str, Any]) -> dict[str, Any]:
    """``evidence.json`` of the lineage's version; empty where it is gone or no JSON any more."""
    try:
        version = version_folder(model["name"], int(model["version"]))
        evidence: dict[str, Any] = read_json(version.folder / "evidence/evidence.json")
    except ProjectError:
        return {}
    return evidence


def run_links(run_id: str, evidence: Mapping[str, Any]) -> list[Link]:
    """The runs that made the model: parameters, tags and metrics in MLflow beside the version's."""
    if "finetuned" not in evidence.get("runs", {}):
        return [missing("runs", "the version was registered without their records")]
    record = RunRecord(**evidence["runs"]["finetuned"]["record"])
    run = _run(run_id)
    if run is None:
        return [_no_run("finetune", run_id)]
    weights = run.data.tags.get("final_weights_sha256")
    links = [
        *_record_links("finetune", run, record),
        _metrics_link(run, evidence["metrics"]),
        same("final weights", weights, evidence["final_weights_sha256"], source="the version"),
    ]
    head_id = run.data.tags.get("head_run_id")
    if head_id is None or "head" not in evidence["runs"]:
        return [*links, missing("train", "no run of the head is known")]
    head = _run(head_id)
    if head is None:
        return [*links, _no_run("train", head_id)]
    return [*links, *_record_links("train", head, RunRecord(**evidence["runs"]["head"]["record"]))]


def _record_links(stage: str, run: "Run", record: RunRecord) -> list[Link]:
    """Parameters and tags of a run, as the record in the version's evidence has them."""
    tags = run_tags(record)
    if run.data.tags.get("restored") == "true":
        tags.pop("head_run_id", None)  # the head's run was restored under another id
    params = _differing(run.data.params, run_params(record))
    wrong_tags = _differing({key: run.data.tags.get(key) for key in tags}, tags)
    source = "the version's evidence"
    return [
        same(f"{stage} run {run.info.run_id[:8]}", run.info.status, "FINISHED", source="a result"),
        changed(f"{stage} params", f"{params} not as in {source}")
        if params
        else holds(f"{stage} params", f"{len(run.data.params)} as in {source}"),
        changed(f"{stage} tags", f"{wrong_tags} not as in {source}")
        if wrong_tags
        else holds(f"{stage} tags", f"{len(tags)} as in {source}"),
    ]


def _metrics_link(run: "Run", metrics: Mapping[str, Any]) -> Link:
    expected = flat_metrics(metrics)
    differing = _differing({key: run.data.metrics.get(key) for key in expected}, expected)
    if differing:
        return changed("metrics", f"{differing} of the run not as in the version's evidence")
    return holds("metrics", f"{len(expected)} as in the version's evidence")


def _differing(found: Mapping[str, Any], expected: Mapping[str, Any]) -> str:
    """Names whose values differ, the first few; empty where none does."""
    names = sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))
    more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
    return ", ".join(names[:_MAX_NAMED]) + more


def _no_run(stage: str, run_id: str) -> Link:
    return missing(
        f"{stage} run {run_id[:8]}",
        "is not in MLflow (mlflow.db deleted?); run: dvc repro register",
    )


def _run(run_id: str) -> "Run | None":
    if is_absent():
        return None
    from mlflow.exceptions import MlflowException

    store = connect()
    with reporting("can't be searched"):
        try:
            return store.client.get_run(run_id)
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise


def code_links(
    submission: Path, lineage: Mapping[str, Any], evidence: Mapping[str, Any]
) -> list[Link]:
    """The commits of training, fine-tuning and prediction, as git has them."""
    stages = _locked_stages()
    is_this = _is_output(stages, "predict", submission.parent)
    links = [_commit_link("predict", lineage["code"], _sources(stages, "predict", is_this))]
    for folder, stage in (("finetuned", "finetune"), ("head", "train")):
        run = evidence.get("runs", {}).get(folder)
        if run is not None:
            run_file = paths.FINAL_MODEL.with_name(folder) / "run.json"
            is_this = run_file.is_file() and read_json(run_file)["run_id"] == run["run_id"]
            links.append(
                _commit_link(stage, run["record"]["origin"], _sources(stages, stage, is_this))
            )
    return links


def _commit_link(stage: str, origin: Mapping[str, str], locked: Mapping[str, str]) -> Link:
    """``locked``: MD5 of the stage's sources as DVC recorded them, for a run with local changes."""
    commit, what = origin.get("git_commit", UNKNOWN), f"code of {stage}"
    if commit == UNKNOWN:
        return missing(what, "was run outside a git repository")
    if _git("cat-file", "-e", f"{commit}^{{commit}}") is None:
        return missing(what, f"commit {commit[:12]}… is not in this repository; run: git fetch")
    if origin.get("git_dirty") == "false":
        return holds(what, f"commit {commit[:12]}…")
    if not locked:
        return changed(
            what, f"had changes beyond commit {commit[:12]}…; commit, then run the stage again"
        )
    differing = [file for file, md5 in locked.items() if _md5_in_git(commit, file) != md5]
    if differing:
        return changed(what, f"differed from commit {commit[:12]}…: {', '.join(differing)}")
    return holds(what, f"commit {commit[:12]}…, whose {len(locked)} files it used unchanged")


def _locked_stages() -> dict[str, Any]:
    """The stages of ``dvc.lock``; none where there is no such file."""
    lock = paths.ROOT / "dvc.lock"
    if not lock.is_file():
        return {}
    from ruamel.yaml import YAML

    stages: dict[str, Any] = YAML(typ="safe", pure=True).load(lock.read_text(encoding="utf-8"))[
        "stages"
    ]
    return stages


def _sources(stages: Mapping[str, Any], stage: str, is_this: bool) -> dict[str, str]:
    """Source file → MD5 by ``dvc.lock``, where its entry is about what is traced; else empty."""
    deps = stages.get(stage, {}).get("deps", []) if is_this else []
    return {dep["path"]: dep["md5"] for dep in deps if dep["path"].startswith("src/")}


def _is_output(stages: Mapping[str, Any], stage: str, folder: Path) -> bool:
    """Whether ``dvc.lock`` calls the folder's present content the output of the stage."""
    outs = stages.get(stage, {}).get("outs", [{}])
    return bool(outs[0].get("md5") == _dvc_md5(folder))


def _dvc_md5(folder: Path) -> str:
    """DVC's digest of a folder: the MD5 of its list of files and their MD5."""
    listed = [
        {"md5": _md5(file.read_bytes()), "relpath": file.relative_to(folder).as_posix()}
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    ]
    listed.sort(key=lambda entry: entry["relpath"])
    return f"{_md5(json.dumps(listed, sort_keys=True).encode())}.dir"


def _md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def _md5_in_git(commit: str, file: str) -> str | None:
    blob = _git("show", f"{commit}:{file}")
    return None if blob is None else _md5(blob)


def _git(*arguments: str) -> bytes | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(paths.ROOT), *arguments], capture_output=True, check=True, timeout=30
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout
