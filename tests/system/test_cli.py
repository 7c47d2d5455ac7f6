"""How a command ends."""

import subprocess
import sys

from src import paths


def _run(body: str) -> subprocess.CompletedProcess[str]:
    code = (
        "from src.system.cli import run\nfrom src.system.errors import ProjectError\n"
        f"def main() -> None:\n    'Help.'\n    {body}\nrun(main)"
    )
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=paths.ROOT
    )


def test_a_project_error_is_one_line_and_exit_1():
    """Catches a traceback, or several lines, for what a person can mend."""
    done = _run("raise ProjectError('first\\nsecond')")
    assert (done.returncode, done.stderr) == (1, "error: first second\n")


def test_a_defect_keeps_its_traceback():
    """Catches our own mistakes being hidden."""
    done = _run("raise KeyError('x')")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_success_is_silent_on_stderr():
    """Catches log lines on stderr."""
    done = _run("print('done')")
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


def test_sigterm_runs_the_clean_up():
    """Catches half-written files that stay because the process just died."""
    body = "import os, signal\n    try: os.kill(os.getpid(), 15)\n    finally: print('cleared')"
    done = _run(body)
    assert (done.returncode, done.stdout, done.stderr) == (143, "cleared\n", "")


def test_ctrl_c_is_130():
    """Catches an interruption that looks like success."""
    assert _run("raise KeyboardInterrupt").returncode == 130
