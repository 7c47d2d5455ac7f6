"""Code version: what counts as changed, and what happens without git."""

import subprocess

import pytest

from src.tracking.lineage import CodeVersion, code_version


@pytest.fixture
def repository(tmp_path):
    def git(*arguments):
        command = ["git", "-c", "user.name=t", "-c", "user.email=t@t", "-C", str(tmp_path)]
        subprocess.run([*command, *arguments], check=True, capture_output=True)

    git("init")
    for name in ("dvc.lock", "params.yaml", "code.py"):
        (tmp_path / name).write_text("1\n")
    git("add", ".")
    git("commit", "-m", "x")
    return tmp_path


def test_clean_checkout(repository):
    version = code_version(repository)
    assert len(version.commit) == 40
    assert version.dirty == "false"


def test_changed_code_is_dirty(repository):
    (repository / "code.py").write_text("2\n")
    assert code_version(repository).dirty == "true"


def test_dvc_lock_params_and_new_files_are_not(repository):
    """DVC rewrites dvc.lock after every stage, `dvc exp run -S` params.yaml, which runs record."""
    (repository / "dvc.lock").write_text("2\n")
    (repository / "params.yaml").write_text("2\n")
    (repository / "notes.txt").write_text("x")
    assert code_version(repository).dirty == "false"


def test_without_git_it_is_unknown(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert code_version(tmp_path) == CodeVersion("unknown", "unknown")
