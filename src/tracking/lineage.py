"""Where a result comes from: the commit, the DVC stage, the software."""

from __future__ import annotations

import os
import platform
import subprocess
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from src import paths

UNKNOWN = "unknown"
PACKAGES = ("tensorflow", "keras", "mlflow", "numpy")


@dataclass(frozen=True)
class CodeVersion:
    """The commit that is checked out. ``dirty``: "true" where tracked files differ from it.

    Both are "unknown" outside a git repository. ``params.yaml`` doesn't count: ``dvc exp run -S``
    edits it, and every run records its parameters itself.
    """

    commit: str
    dirty: str


def code_version(root: Path | None = None) -> CodeVersion:
    """Commit and state of the repository that holds ``root`` (default: this project)."""
    root = root or paths.ROOT
    commit = _git(root, "rev-parse", "HEAD")
    # dvc.lock is rewritten after every stage of the very pipeline that is being recorded
    unchecked = (":!dvc.lock", ":!params.yaml")
    changed = _git(root, "status", "--porcelain", "--untracked-files=no", "--", ".", *unchecked)
    if commit is None or changed is None:
        return CodeVersion(UNKNOWN, UNKNOWN)
    return CodeVersion(commit, "true" if changed else "false")


def has_commit(commit: str) -> bool:
    """Whether this project's repository has that commit."""
    return _git(paths.ROOT, "cat-file", "-e", f"{commit}^{{commit}}") is not None


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
