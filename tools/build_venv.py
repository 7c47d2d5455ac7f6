"""Build .venv from requirements.lock, hash-checked; do nothing if it is up to date.

Uses only the standard library, because it runs before anything is installed.
"""

from __future__ import annotations

import ast
import fcntl
import filecmp
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
LOCK = ROOT / "requirements.lock"
UV_LOCK = ROOT / "requirements-uv.txt"
INSTALLED = VENV / "requirements.lock"  # copied last, so a half-built .venv never counts as built

OLDEST, NEWEST = (3, 11), (3, 13)  # TensorFlow 2.21 has wheels for these
# Every Python in .venv reads this file when it starts: `mlflow ui` and `dvc` as well as our code.
SEND_NOTHING = (
    "import os; [os.environ.setdefault(name, value) for name, value in "
    "(('MLFLOW_DISABLE_TELEMETRY', 'true'), ('DO_NOT_TRACK', 'true'), ('DVC_NO_ANALYTICS', '1'))]\n"
)


def main() -> None:
    check_python()
    if VENV.is_symlink():
        return  # a linked environment is shared: whoever made it looks after it
    with (ROOT / ".venv.lock").open("w") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)  # a second `make` waits, then finds .venv built
        if INSTALLED.is_file() and filecmp.cmp(LOCK, INSTALLED, shallow=False):
            return
        try:
            build()
        except BaseException:  # Ctrl-C too
            shutil.rmtree(VENV, ignore_errors=True)
            raise


def check_python() -> None:
    version = ".".join(map(str, sys.version_info[:2]))
    if not OLDEST <= sys.version_info[:2] <= NEWEST:
        sys.exit(
            f"error: Python 3.11, 3.12 or 3.13 is needed (got {version}); make PYTHON=python3.11 …"
        )
    try:
        import ensurepip  # noqa: F401  # Debian and Ubuntu package it separately
    except ModuleNotFoundError:
        sys.exit(
            f"error: Python {version} can't make a .venv: ensurepip is missing; install it, on "
            f"Debian or Ubuntu: apt-get install python{version}-venv"
        )


def build() -> None:
    print(f"building .venv from {LOCK.name}", flush=True)
    venv.create(VENV, clear=True, symlinks=True, with_pip=True)
    if not install_with_uv():
        print("uv could not install it: trying pip, which takes a few minutes", flush=True)
        if not pip_install(LOCK):
            sys.exit(f"error: pip could not install {LOCK.name}; see its message above")
    places = {"base": str(VENV), "platbase": str(VENV)}
    packages = Path(sysconfig.get_path("purelib", scheme="venv", vars=places))
    (packages / "send_nothing.pth").write_text(SEND_NOTHING)
    shutil.copyfile(LOCK, INSTALLED)


def pip_install(requirements: Path) -> bool:
    command = [PYTHON, "-m", "pip", "install", "--quiet", "--no-input", "--require-hashes"]
    return subprocess.run([*command, "-r", requirements]).returncode == 0


def install_with_uv() -> bool:
    uv = shutil.which("uv")
    if uv is None:
        if not pip_install(UV_LOCK):
            return False
        uv = str(VENV / "bin" / "uv")
    command = [uv, "pip", "install", "--quiet", "--require-hashes", "--python", PYTHON, "-r", LOCK]
    return subprocess.run(command, env={**pip_settings_for_uv(), **os.environ}).returncode == 0


def pip_settings_for_uv() -> dict[str, str]:
    """uv doesn't read pip's configuration: the package sources named there, as uv's variables."""
    command = [PYTHON, "-m", "pip", "config", "list"]  # lines like global.index-url='…'
    listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    pip: dict[str, list[str]] = {}
    for section in ("global.", "install.", ":env:."):  # the later one wins, as it does in pip
        for line in listed.splitlines():
            if line.startswith(section):
                key, _, value = line.removeprefix(section).partition("=")
                pip[key] = str(ast.literal_eval(value)).split()
    settings = {
        "UV_DEFAULT_INDEX": " ".join(pip.get("index-url", [])),
        "UV_INDEX": " ".join(pip.get("extra-index-url", [])),
        "UV_FIND_LINKS": ",".join(pip.get("find-links", [])),
        "UV_NO_INDEX": " ".join(pip.get("no-index", [])),
        "UV_INSECURE_HOST": " ".join(pip.get("trusted-host", [])),
        "ALL_PROXY": " ".join(pip.get("proxy", [])),
        "SSL_CERT_FILE": " ".join(pip.get("cert", [])),
        # pip takes a package from any index that has it; safe here, because hashes are checked
        "UV_INDEX_STRATEGY": "unsafe-best-match",
    }
    return {name: value for name, value in settings.items() if value}


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
