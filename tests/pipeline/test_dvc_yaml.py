"""dvc.yaml says all that a stage depends on; otherwise DVC reuses stale results."""

import ast

import pytest
from ruamel.yaml import YAML

from src import paths
from tests.pipeline.closure import import_closure

STAGES = YAML(typ="safe", pure=True).load(paths.ROOT / "dvc.yaml")["stages"]
SECTIONS = ("sample", "ingest", "explore", "split", "model", "train", "finetune", "evaluate")
SECTIONS = (*SECTIONS, "register", "predict")


@pytest.mark.parametrize("stage", STAGES)
def test_deps_are_the_import_closure(stage):
    """Catches code that changes without the stage being run again. Mend with: make deps."""
    modules = {
        dep for dep in STAGES[stage]["deps"] if dep.startswith("src/") and dep.endswith(".py")
    }
    assert modules == import_closure(stage)


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
