"""Which of our modules a module needs, directly and through others."""

import ast
from pathlib import Path

from src import paths


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
