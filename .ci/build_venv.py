"""Build .venv from requirements.lock, hash-checked; do nothing when it is already there.

Standard library only: it runs before anything is installed. Two at once: the second waits.
"""

import fcntl
import filecmp
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
LOCK = ROOT / "requirements.lock"
INSTALLED = VENV / "requirements.lock"  # written last, so that a half-built .venv doesn't count

OLDEST, NEWEST = (3, 11), (3, 13)  # TensorFlow 2.21 has wheels for these
# Read by every Python of .venv as it starts, `mlflow ui` and `dvc` as well as our own commands.
SEND_NOTHING = (
    "import os; [os.environ.setdefault(name, value) for name, value in "
    "(('MLFLOW_DISABLE_TELEMETRY', 'true'), ('DO_NOT_TRACK', 'true'), ('DVC_NO_ANALYTICS', '1'))]\n"
)


def main() -> None:
    check_python()
    with (ROOT / ".venv.lock").open("w") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        if not INSTALLED.is_file() or not filecmp.cmp(LOCK, INSTALLED, shallow=False):
            build()


def check_python() -> None:
    if not OLDEST <= sys.version_info[:2] <= NEWEST:
        found = ".".join(map(str, sys.version_info[:3]))
        sys.exit(
            f"error: Python 3.11, 3.12 or 3.13 is needed (got {found}); make PYTHON=python3.11 …"
        )
    try:
        import ensurepip  # noqa: F401  # Debian and Ubuntu ship it apart from Python
    except ModuleNotFoundError:
        version = ".".join(map(str, sys.version_info[:2]))
        sys.exit(
            f"error: Python {version} can't make a .venv: ensurepip is missing; install it, on "
            f"Debian or Ubuntu: apt-get install python{version}-venv"
        )


def build() -> None:
    print(f"building .venv from {LOCK.name} (some minutes, once)", flush=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", VENV], check=True)
    python = VENV / "bin" / "python"
    pip = [python, "-m", "pip", "install", "--quiet", "--require-hashes"]
    done = subprocess.run([*pip, "-r", LOCK], env={**os.environ, "PIP_NO_INPUT": "1"})
    if done.returncode:
        sys.exit(f"error: pip could not install {LOCK.name}; see its message above")
    places = {"base": str(VENV), "platbase": str(VENV)}
    packages = Path(sysconfig.get_path("purelib", scheme="venv", vars=places))
    (packages / "send_nothing.pth").write_text(SEND_NOTHING)
    shutil.copyfile(LOCK, INSTALLED)


if __name__ == "__main__":
    main()
