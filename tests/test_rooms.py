"""The import rule of src/__init__.py, and modules that do nothing when imported."""

import subprocess
import sys
from pathlib import Path

import pytest

from src import paths
from tests.pipeline.closure import imports_of

SRC = paths.ROOT / "src"
MODULES = sorted(SRC.rglob("*.py"))
ROOMS = ("data", "drawing", "model", "evaluation", "tracking", "system")
COMMANDS = ("promote", "trace", "submit", "serve", "tune")
STAGES = (
    "sample",
    "ingest",
    "split",
    "explore",
    "train",
    "finetune",
    "evaluate",
    "register",
    "predict",
)
MAY_IMPORT = {
    "data": {"system"},
    "drawing": {"system", "data"},
    "model": {"system", "data"},
    "evaluation": {"system", "data"},
    "tracking": {"system"},
    "system": set(),
}
SHARED = {"src.params", "src.paths"}


def _room(name: str) -> str | None:
    parts = name.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in ROOMS else None


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_the_rooms_below_it(room):
    """Catches walls moved by an import, wherever in the file it stands."""
    allowed = MAY_IMPORT[room] | {room}
    for file in (SRC / room).glob("*.py"):
        for name in imports_of(file):
            ours = _room(name)
            if ours is None:
                is_shared = name == "src" or any(name.startswith(shared) for shared in SHARED)
                assert is_shared, f"{file}: {name} is a stage or unknown"
            else:
                assert ours in allowed, f"{file}: {room} must not import {name}"


def test_nothing_imports_a_stage():
    """Catches a stage used as a library."""
    stages = {f"src.{stage}" for stage in STAGES + COMMANDS}
    for file in MODULES:
        assert not stages & set(imports_of(file)), file


def test_only_tracking_imports_mlflow():
    """Catches tracking calls that are spread over the code."""
    for file in MODULES:
        text = file.read_text(encoding="utf-8")
        if "tracking" not in file.parts:
            assert "import mlflow" not in text, file
            assert "from mlflow" not in text, file


def test_every_module_imports_without_tensorflow_mlflow_or_output():
    """Catches work, output or slow imports at import time."""
    names = [
        ".".join(file.relative_to(paths.ROOT).with_suffix("").parts).removesuffix(".__init__")
        for file in MODULES
    ]
    code = (
        "import importlib, sys\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
        "print(sorted({'tensorflow', 'keras', 'mlflow'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=paths.ROOT, check=True
    )
    assert done.stdout.strip() == "[]"
    assert done.stderr == ""


@pytest.mark.parametrize("stage", STAGES + COMMANDS)
def test_help_loads_nothing_heavy(stage):
    """Catches a --help that waits for what takes seconds: TensorFlow, MLflow, Optuna."""
    code = (
        "import runpy, sys\n"
        f"sys.argv = ['{stage}', '--help']\n"
        f"try: runpy.run_module('src.{stage}', run_name='__main__')\n"
        "except SystemExit as done: assert not done.code, done.code\n"
        "heavy = {'tensorflow', 'keras', 'mlflow', 'optuna', 'plotly'}\n"
        "print('loaded:', sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=paths.ROOT, check=True
    )
    assert done.stdout.splitlines()[-1] == "loaded: []"
    assert "Usage" in done.stdout


def test_stages_are_those_of_params_and_dvc():
    """Catches a stage without its section, or its entry in dvc.yaml."""
    from ruamel.yaml import YAML

    yaml = YAML(typ="safe", pure=True)
    assert list(yaml.load(paths.ROOT / "dvc.yaml")["stages"]) == list(STAGES)
    sections = set(yaml.load(Path(paths.PARAMS)))
    assert sections == {*STAGES, "model", "tune", "cache", "runtime"}
