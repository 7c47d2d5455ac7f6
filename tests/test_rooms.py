"""The map and the import rule of src/__init__.py."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from ruamel.yaml import YAML

import src
from src import paths
from tests.pipeline.closure import imports_of

SRC = paths.ROOT / "src"
MODULES = sorted(SRC.rglob("*.py"))
STAGES = list(YAML(typ="safe", pure=True).load(paths.ROOT / "dvc.yaml")["stages"])
VERBS = sorted(file.stem for file in SRC.glob("*.py") if "__main__" in file.read_text())
MAY_IMPORT = {
    "data": {"system"},
    "drawing": {"system", "data"},
    "exploration": {"system", "data"},
    "model": {"system", "data"},
    "evaluation": {"system", "data"},
    "tracking": {"system"},
    "system": set(),
}
ANY_ROOM_MAY_IMPORT = ("src.params", "src.paths", "src.patch")
SLOW = {"tensorflow", "keras", "mlflow"}


def _python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=paths.ROOT, check=True
    )


def _without_tensorflow(stderr: str) -> list[str]:
    """Lines of stderr, but for those that TensorFlow's native code writes whatever it is told."""
    native = re.compile(r"WARNING: All log messages before absl|[IW]\d{4} |To enable the following")
    return [line for line in stderr.splitlines() if not native.match(line)]


def test_the_map_names_exactly_what_is_there():
    """Catches a module or room that is missing from the map, and one that is gone."""
    text = src.__doc__.partition("Import rule")[0]
    named = {name for words in re.findall(r"``([a-z ]+)``", text) for name in words.split()}
    there = {file.stem for file in SRC.glob("*.py")} | {d.parent.name for d in SRC.glob("*/*.py")}
    assert named == there - {"__init__"}


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_a_room_imports_only_the_rooms_below_it(room):
    """Catches a wall moved by an import, wherever in the file it stands."""
    allowed = {room, *MAY_IMPORT[room]}
    for file in (SRC / room).glob("*.py"):
        for name in imports_of(file):
            is_shared = name == "src" or name.startswith(ANY_ROOM_MAY_IMPORT)
            assert is_shared or name.split(".")[1] in allowed, f"{file}: {name}"


def test_nothing_imports_a_stage_or_a_command():
    """Catches a stage used as a library."""
    verbs = {f"src.{verb}" for verb in VERBS}
    for file in MODULES:
        assert not verbs & set(imports_of(file)), file


def test_only_tracking_imports_mlflow():
    """Catches tracking calls spread over the code."""
    for file in MODULES:
        if file.parent.name != "tracking":
            assert not re.search(r"^\s*(import|from) mlflow", file.read_text(), re.MULTILINE), file


def test_modules_do_nothing_when_imported():
    """Catches work or output at import time."""
    names = [
        ".".join(file.relative_to(paths.ROOT).with_suffix("").parts).removesuffix(".__init__")
        for file in MODULES
    ]
    done = _python(f"import importlib\nfor name in {names!r}: importlib.import_module(name)")
    assert done.stdout == ""
    assert _without_tensorflow(done.stderr) == []


@pytest.mark.parametrize("verb", VERBS)
def test_help_loads_nothing_slow(verb):
    """Catches a --help that waits for what takes seconds to import."""
    done = _python(
        "import runpy, sys\n"
        f"sys.argv = ['{verb}', '--help']\n"
        f"try: runpy.run_module('src.{verb}', run_name='__main__')\n"
        "except SystemExit as done: assert not done.code, done.code\n"
        f"print('loaded:', sorted({SLOW!r} & set(sys.modules)))"
    )
    assert done.stdout.splitlines()[-1] == "loaded: []"
    assert "Usage" in done.stdout


def test_stages_are_those_of_params():
    """Catches a stage without its module or its section."""
    assert set(STAGES) <= set(VERBS)
    sections = set(YAML(typ="safe", pure=True).load(paths.PARAMS))
    assert sections == {*STAGES, "model", "tune", "cache", "runtime"}
