"""dvc.yaml says all that a stage depends on; otherwise DVC reuses stale results."""

import ast

import pytest
from ruamel.yaml import YAML

from src import paths
from src.model.checkpoint import recorded_params
from src.params import Params, load_params
from tests.pipeline.closure import import_closure

STAGES = YAML(typ="safe", pure=True).load(paths.ROOT / "dvc.yaml")["stages"]
SECTIONS = set(Params.model_fields) - {"runtime", "tune"}
# finetune records train, on which it depends through models/head; predict --input isn't the stage
READ_BESIDES = {"finetune": {"train"}, "predict": {"register_"}}


# their content is named elsewhere (as params, as deps and outs, in the archive), or it is prose
NO_DEPS = {"src/params.py", "src/paths.py", "src/patch.py", "src/__init__.py"}


@pytest.mark.parametrize("stage", STAGES)
def test_deps_cover_the_import_closure(stage):
    """Catches code that changes without the stage being run again, and a room that isn't used."""
    needed = import_closure(f"src.{stage}") - NO_DEPS
    code = {dep for dep in STAGES[stage]["deps"] if dep.startswith("src/")}
    covered = {file for file in needed for dep in code if file == dep or file.startswith(f"{dep}/")}
    assert covered == needed
    assert all(any(f == dep or f.startswith(f"{dep}/") for f in needed) for dep in code)


@pytest.mark.parametrize("stage", STAGES)
def test_params_are_the_sections_it_reads(stage):
    """Catches a parameter that changes without the stage being run again."""
    read = {section for file in _beside_the_stages(stage) for section in _read_in(file)}
    if stage in ("train", "finetune"):
        read |= set(recorded_params(load_params(), stage))
    named = {param.split(".")[0] for param in STAGES[stage]["params"]}
    read = (read & SECTIONS) - READ_BESIDES.get(stage, set())
    assert {section.removesuffix("_") for section in read} <= named


def _beside_the_stages(stage):
    """The stage, and the modules that it shares with others: rooms are given values, not Params."""
    files = import_closure(f"src.{stage}") - {"src/params.py"}
    return [paths.ROOT / file for file in files if file.count("/") == 1]


def _read_in(file):
    nodes = ast.walk(ast.parse(file.read_text(encoding="utf-8")))
    reads = (node for node in nodes if isinstance(node, ast.Attribute))
    return [node.attr for node in reads if getattr(node.value, "id", None) == "params"]


def test_no_stage_depends_on_runtime():
    """Catches a retraining because of a verbosity."""
    named = {param.split(".")[0] for stage in STAGES.values() for param in stage["params"]}
    assert named == {section.removesuffix("_") for section in SECTIONS}


@pytest.mark.parametrize("stage", STAGES)
def test_stage_is_script_is_section(stage):
    """Catches a stage whose command is another module."""
    assert STAGES[stage]["cmd"] == f"python -m src.{stage}"
    assert stage in STAGES[stage]["params"]
