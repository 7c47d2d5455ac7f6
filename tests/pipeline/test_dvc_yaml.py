"""dvc.yaml says all that a stage depends on; otherwise DVC reuses stale results."""

import ast

import pytest
from ruamel.yaml import YAML

from src import paths
from src.system.code import import_closure, training_code
from tests.pipeline.closure import is_module

STAGES = YAML(typ="safe", pure=True).load(paths.ROOT / "dvc.yaml")["stages"]
SECTIONS = ("sample", "ingest", "explore", "split", "model", "train", "finetune", "evaluate")
SECTIONS = (*SECTIONS, "register", "predict")


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
    text = (paths.ROOT / "src" / f"{stage}.py").read_text(encoding="utf-8")
    read = {
        node.attr.removesuffix("_")
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "params"
    }
    assert read & set(SECTIONS) <= set(STAGES[stage]["params"])


def test_no_stage_depends_on_runtime():
    """Catches a retraining because of a verbosity."""
    assert not any("runtime" in stage.get("params", []) for stage in STAGES.values())


@pytest.mark.parametrize("stage", STAGES)
def test_stage_is_script_is_section(stage):
    """Catches a stage whose command is another module."""
    assert STAGES[stage]["cmd"] == f"python -m src.{stage}"
    assert stage in STAGES[stage]["params"]
