"""Where a result comes from: code version, software, and the chain behind a submission."""

import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from src import paths
from src.system.durable import sha256_file

if TYPE_CHECKING:
    from src.tracking.registry import VersionFiles

UNKNOWN = "unknown"
PACKAGES = ("tensorflow", "keras", "mlflow", "numpy")


@dataclass(frozen=True)
class CodeVersion:
    """The commit that is checked out. ``dirty``: "true" where tracked files differ from it.

    Both are "unknown" outside a git repository.
    """

    commit: str
    dirty: str


def code_version(root: Path | None = None) -> CodeVersion:
    """Commit and state of the repository that holds ``root`` (default: this project)."""
    root = root or paths.ROOT
    commit = _git(root, "rev-parse", "HEAD")
    # dvc.lock is rewritten after every stage of the very pipeline that is being recorded
    changed = _git(root, "status", "--porcelain", "--untracked-files=no", "--", ".", ":!dvc.lock")
    if commit is None or changed is None:
        return CodeVersion(UNKNOWN, UNKNOWN)
    return CodeVersion(commit, "true" if changed else "false")


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments],
            capture_output=True,
            text=True,
            check=True,
            timeout=30,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},  # status must not touch the index
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def origin() -> dict[str, str]:
    """Which code, under which DVC stage and experiment ('' outside them), is running."""
    code = code_version()
    return {
        "git_commit": code.commit,
        "git_dirty": code.dirty,
        "dvc_stage": os.environ.get("DVC_STAGE", ""),
        "dvc_exp": os.environ.get("DVC_EXP_NAME", ""),
    }


def software() -> dict[str, str]:
    """Versions of Python, of the packages a model depends on, and the platform."""
    versions = {package: metadata.version(package) for package in PACKAGES}
    return {"python": platform.python_version(), "platform": platform.platform(), **versions}


def submission_lineage(
    *,
    submission: Path,
    n_rows: int,
    quarantined: Sequence[str],
    quarantined_probability: float,
    version: "VersionFiles",
    role: str,
    data_digests: Mapping[str, Any],
) -> dict[str, Any]:
    """What ``lineage.json`` says of a submission.

    ``role`` is ``champion`` or ``unpromoted``. ``quarantined`` ids had no readable image and got
    ``quarantined_probability``, the training prevalence.
    """
    return {
        "submission": {
            "file": submission.name,
            "sha256": sha256_file(submission),
            "n_rows": n_rows,
            "quarantined": list(quarantined),
            "quarantined_probability": quarantined_probability,
        },
        "model": {
            "name": version.name,
            "version": version.version,
            "role": role,
            "run_id": version.run_id,
            "model_sha256": version.model_sha256,
            "manifest_sha256": version.manifest_sha256,
        },
        "operating_point": dict(version.operating_point),
        "data": dict(data_digests),
        "code": {key: value for key, value in origin().items() if key.startswith("git_")},
    }
