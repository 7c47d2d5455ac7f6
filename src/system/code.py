"""Which of our modules a module needs, directly and through others, and a digest of them.

``dvc.yaml`` names the closure of every stage (``make deps``), and a checkpoint the digest of the
code that made it: one idea of what code matters.
"""

import ast
import hashlib
from functools import cache
from pathlib import Path

from src import paths

# What training runs through, from pixels to weights; tracking and figures change no weight.
_TRAINING = (
    "src.data.labelled",
    "src.evaluation.metrics",
    "src.model.class_weights",
    "src.model.classifier",
    "src.model.phases",
    "src.model.weights",
    "src.system.determinism",
    "src.training",
)
# The first two are in the identity as values; the others only say what happens.
_CHANGE_NO_WEIGHT = {f"src/{name}.py" for name in ("params", "paths")} | {
    f"src/system/{name}.py" for name in ("cli", "code", "errors", "log", "progress")
}
_NOT_FOLLOWED = ("src.tracking", "src.evaluation.figures")


@cache
def training_code_digest() -> str:
    """SHA-256 of the code that trained weights depend on."""
    digest = hashlib.sha256()
    for file in sorted(training_code()):
        digest.update(f"{file}\n".encode() + (paths.ROOT / file).read_bytes())
    return digest.hexdigest()


def training_code() -> set[str]:
    """Files, relative to the root, that trained weights depend on."""
    return import_closure(*_TRAINING, without=_NOT_FOLLOWED) - _CHANGE_NO_WEIGHT


def import_closure(*modules: str, without: tuple[str, ...] = ()) -> set[str]:
    """Files, relative to the root, that ``modules`` (``src.…``) need, wherever the import stands.

    Packages count as their ``__init__.py``. Modules whose name begins as one of ``without`` are
    left out, with what they alone need.
    """
    seen: set[str] = set()
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        file = _file_of(name)
        if file is None or file in seen or name.startswith(without or ("\0",)):
            continue
        seen.add(file)
        waiting += _parents(name) + imports_of(paths.ROOT / file)
    return seen


def imports_of(file: Path) -> list[str]:
    """Names below ``src`` that a file imports: modules, and what it takes from them."""
    names: list[str] = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names += [node.module] + [f"{node.module}.{alias.name}" for alias in node.names]
    return [name for name in names if name.split(".")[0] == "src"]


def _parents(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:i]) for i in range(1, len(parts))]


def _file_of(name: str) -> str | None:
    path = Path(*name.split("."))
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if (paths.ROOT / candidate).is_file():
            return candidate.as_posix()
    return None
