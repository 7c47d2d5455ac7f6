"""dvc.yaml says all that a stage depends on; otherwise DVC reuses stale results."""

import ast

import pytest
from ruamel.yaml import YAML

from src import paths
from src.params import Params, load_params
from src.system.code import import_closure, training_code
from src.training import recorded_params
from tests.pipeline.closure import is_module

STAGES = YAML(typ="safe", pure=True).load(paths.ROOT / "dvc.yaml")["stages"]
SECTIONS = set(Params.model_fields) - {"runtime", "tune"}
# finetune records train, on which it depends through models/head; evaluate shares src.deciding with
# register, but decides nothing; predict --input isn't the stage
READ_BESIDES = {"finetune": {"train"}, "evaluate": {"register_"}, "predict": {"register_"}}


@pytest.mark.parametrize("stage", STAGES)
def test_deps_are_the_import_closure(stage):
    """Catches code that changes without the stage being run again. Mend with: make deps."""
    modules = {dep for dep in STAGES[stage]["deps"] if is_module(dep)}
    assert modules == import_closure(f"src.{stage}")


def test_training_code_is_what_weights_depend_on():
    """Catches a checkpoint that outlives a fix of the metric that chose its epoch, and one that is
    thrown away because a picture changed."""
    code = training_code()
    needed = {"evaluation/metrics.py", "model/loop.py", "data/batches.py", "training.py"}
    assert {f"src/{name}" for name in needed} <= code
    unneeded = {"model/gradcam.py", "data/galleries.py", "tracking/runs.py", "params.py"}
    assert not {f"src/{name}" for name in unneeded} & code


def test_evaluate_depends_on_the_templates_of_its_report():
    """Catches a page that stays as it was when its style, script or text changes."""
    assert "src/evaluation/page" in STAGES["evaluate"]["deps"]


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
