"""What a phase's work is known by: where it differs, nothing is taken over."""

import pytest

from src.model.checkpoint import work_identity
from src.params import load_params
from src.paths import ROOT

PARAMS = load_params(ROOT / "presets" / "sample.yaml")
DATASET = {"content_digest": "a", "split_sha256": "b", "digest": "of DVC", "n_train": 7}


def _identity(values=None, *, dataset=None, sha256="c", environment=None) -> dict:
    return work_identity(
        PARAMS.model_copy(update=_sections(values or {})),
        "finetune",
        dataset={**DATASET, **(dataset or {})},
        initial_sha256=sha256,
        environment={"threads": 2, **(environment or {})},
    )


def _sections(values: dict) -> dict:
    changed = {}
    for name, value in values.items():
        section, key = name.split(".")
        changed[section] = getattr(PARAMS, section).model_copy(update={key: value})
    return changed


@pytest.mark.parametrize(
    "change",
    [
        {"values": {"finetune.epochs": 9}},
        {"values": {"train.epochs": 9}},
        {"values": {"model.pooling": "gem"}},
        {"values": {"split.seed": 9}},
        {"values": {"cache.dtype": "float32"}},
        {"values": {"runtime.xla": "off"}},
        {"values": {"runtime.mixed_precision": "on"}},
        {"dataset": {"content_digest": "z"}},
        {"dataset": {"split_sha256": "z"}},
        {"sha256": "z"},
        {"environment": {"threads": 1}},
    ],
    ids=str,
)
def test_what_changes_a_result_changes_the_identity(change):
    """Catches a run that goes on from the state of other work."""
    assert _identity(**change) != _identity()


@pytest.mark.parametrize(
    "change",
    [
        {"values": {"cache.max_gb": 1.0}},
        {"values": {"runtime.verbosity": "debug"}},
        {"values": {"runtime.checkpoint_minutes": 1.0}},
        {"values": {"evaluate.confidence": 0.9}},
        {"dataset": {"digest": "of ours", "n_train": 8}},
    ],
    ids=str,
)
def test_what_changes_no_result_does_not(change):
    """Catches a night's training begun anew because its log was made quieter."""
    assert _identity(**change) == _identity()


def test_the_code_is_part_of_it(monkeypatch):
    """Catches a state taken over by code that computes something else."""
    before = _identity()
    monkeypatch.setattr("src.model.checkpoint.training_code_digest", lambda: "other")
    assert _identity() != before
