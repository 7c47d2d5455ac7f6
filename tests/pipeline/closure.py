"""Which of our modules a stage imports, directly and through others, wherever the import stands.

``python -m tests.pipeline.closure`` (``make deps``) writes the closure of every stage into
``dvc.yaml``; ``test_dvc_yaml.py`` fails while it is out of date.
"""

import ast
from pathlib import Path

from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parent.parent.parent
DVC_YAML = ROOT / "dvc.yaml"


def import_closure(module: str) -> set[str]:
    """Files, relative to the root, that ``src.<module>`` needs; packages count as __init__.py."""
    seen: set[str] = set()
    waiting = [f"src.{module}"]
    while waiting:
        name = waiting.pop()
        file = _file_of(name)
        if file is None or file in seen:
            continue
        seen.add(file)
        waiting += _parents(name) + _imports_of(ROOT / file)
    return seen


def _imports_of(file: Path) -> list[str]:
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
        if (ROOT / candidate).is_file():
            return candidate.as_posix()
    return None


def _is_module(dep: str) -> bool:
    return dep.startswith("src/") and dep.endswith(".py")


def main() -> None:
    """Replace every stage's modules among its deps in dvc.yaml by its import closure."""
    yaml = YAML()
    yaml.width = 100
    yaml.indent(mapping=2, sequence=4, offset=2)
    document = yaml.load(DVC_YAML)
    for name, stage in document["stages"].items():
        data = [dep for dep in stage.get("deps", []) if not _is_module(str(dep))]
        stage["deps"] = data + sorted(import_closure(name))
    yaml.dump(document, DVC_YAML)


if __name__ == "__main__":
    main()
