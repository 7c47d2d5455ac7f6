"""Which of our modules a module needs, directly and through others."""

from __future__ import annotations

import ast
from pathlib import Path

from src import paths


def import_closure(module: str) -> set[str]:
    """Files, relative to the root, that ``module`` (``src.…``) needs, wherever the import stands.

    Packages count as their ``__init__.py``.
    """
    seen: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        file = _file_of(name)
        if file is None or file in seen:
            continue
        seen.add(file)
        parts = name.split(".")
        waiting += [".".join(parts[:i]) for i in range(1, len(parts))]  # its packages
        waiting += imports_of(paths.ROOT / file)
    return seen


def imports_of(file: Path) -> list[str]:
    """Names below ``src`` that a file imports: modules, and what it takes from them."""
    names: list[str] = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return [name for name in names if name.split(".")[0] == "src"]


def _file_of(name: str) -> str | None:
    path = Path(*name.split("."))
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if (paths.ROOT / candidate).is_file():
            return candidate.as_posix()
    return None
