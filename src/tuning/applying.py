"""Writing parameters into ``params.yaml``: comments and order stay, and the change is shown."""

import difflib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from src.params import load_params
from src.system.durable import replacing
from src.system.errors import ProjectError


class NotApplied(ProjectError):
    """The file can't take the parameters."""


def changed_text(text: str, values: Mapping[str, Any]) -> str:
    """``text`` of a YAML file with ``values``, by dotted name, in place of those it has.

    Raises
    ------
    NotApplied
        A section of the name isn't there.
    """
    from ruamel.yaml import YAML

    yaml = YAML()
    yaml.representer.add_representer(type(None), _null)
    yaml.preserve_quotes = True
    yaml.width = 10_000
    document = yaml.load(text)
    for name, value in values.items():
        *sections, key = name.split(".")
        inside = document
        for section in sections:
            if section not in inside:
                raise NotApplied(f"params.yaml has no {'.'.join(sections)}; add it, then again")
            inside = inside[section]
        if inside.get(key) != value:
            inside[key] = value
    out = io.StringIO()
    yaml.dump(document, out)
    return out.getvalue()


def _null(representer: Any, value: None) -> Any:  # noqa: ARG001
    return representer.represent_scalar("tag:yaml.org,2002:null", "null")


def apply(path: Path, values: Mapping[str, Any]) -> str:
    """Write ``values`` into the file, checked before it is replaced; the difference, or nothing.

    Raises
    ------
    NotApplied
        The result wouldn't hold these values.
    ParamsError
        The result wouldn't be allowed.
    """
    before = path.read_text(encoding="utf-8")
    after = changed_text(before, values)
    with replacing(path) as temporary:
        temporary.write_text(after, encoding="utf-8")
        written = load_params(temporary)
        for name, value in values.items():
            if written.value(name) != value:
                raise NotApplied(f"{name} would read as {written.value(name)!r}, not {value!r}")
    lines = difflib.unified_diff(
        before.splitlines(), after.splitlines(), path.name, path.name, lineterm="", n=1
    )
    return "\n".join(lines)
