"""Build .venv from requirements.lock, hash-checked; do nothing when it is already there.

Standard library only: it runs before anything is installed. Two at once: the second waits.
"""

import fcntl
import filecmp
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
LOCK = ROOT / "requirements.lock"
INSTALLED = VENV / "requirements.lock"  # written last, so that a half-built .venv doesn't count


def main() -> None:
    if sys.version_info < (3, 11):
        found = ".".join(map(str, sys.version_info[:3]))
        sys.exit(f"error: Python 3.11 or newer is needed (got {found}); make PYTHON=python3.11 …")
    with (ROOT / ".venv.lock").open("w") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        if not INSTALLED.is_file() or not filecmp.cmp(LOCK, INSTALLED, shallow=False):
            _build()


def _build() -> None:
    print(f"building .venv from {LOCK.name} (some minutes, once)", flush=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", VENV], check=True)
    pip = [VENV / "bin" / "python", "-m", "pip", "install", "--quiet", "--require-hashes"]
    done = subprocess.run([*pip, "-r", LOCK], env={**os.environ, "PIP_NO_INPUT": "1"})
    if done.returncode:
        sys.exit(f"error: pip could not install {LOCK.name}; see its message above")
    shutil.copyfile(LOCK, INSTALLED)


if __name__ == "__main__":
    main()
