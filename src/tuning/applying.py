"""Writing parameters into ``params.yaml``: comments and order stay, and the change is shown."""

import difflib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from src.params import Params, ParamsError, load_params
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
    wanted = load_params(path).with_values(values)
    before = path.read_text(encoding="utf-8")
    after = changed_text(before, values)
    with replacing(path) as temporary:
        temporary.write_text(after, encoding="utf-8")
        written = _read(temporary, name=path.name)
        for name in values:
            if written.value(name) != wanted.value(name):
                raise NotApplied(
                    f"{path.name}: {name} would read as {written.value(name)!r}, not "
                    f"{wanted.value(name)!r}; write it there by hand"
                )
    lines = difflib.unified_diff(
        before.splitlines(), after.splitlines(), path.name, path.name, lineterm="", n=1
    )
    return "\n".join(lines)


def _read(temporary: Path, *, name: str) -> Params:
    """The parameters of a file that a person knows as ``name``."""
    try:
        return load_params(temporary)
    except ParamsError as error:
        raise ParamsError(str(error).replace(temporary.name, name)) from error
