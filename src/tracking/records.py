"""What a run says about itself before it starts, as plain values, and their names in MLflow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from numbers import Real
from typing import Any

from src.system.identity import flatten
from src.tracking import lineage

WORK_KEY = "work_key"
LONGEST_PARAM = 6000  # MLflow's limit, in characters
_DATA_TAGS = ("content_digest", "split_sha256")


@dataclass(frozen=True)
class RunRecord:
    """All that is known when ``train`` or ``finetune`` starts; goes into ``run.json`` as well.

    Attributes
    ----------
    stage : ``train`` or ``finetune``
    params : sections of ``params.yaml`` that matter to the stage, by section name
    dataset : ``name``, ``digest`` (at most 36 characters), ``source``, ``n_train``, ``n_val``;
        ``content_digest`` and ``split_sha256`` become tags
    class_weights : ``normal`` and ``tumour``, as used in the loss
    schedule : of the learning rate; ``name`` and its settings
    initial_weights_sha256 : of the weights training starts from
    slide_disjoint : whether no slide is on two sides of the split
    groups_are : what the split kept together: slides, or what stands in for them
    parent_run_id : run of the head this fine-tunes; None for ``train``
    work_key : digest of all the result depends on; the run of an interrupted phase is found by it
    origin : commit, state of the tracked files, DVC stage and experiment at the start
    """

    stage: str
    params: Mapping[str, Any]
    dataset: Mapping[str, Any]
    class_weights: Mapping[str, float]
    schedule: Mapping[str, Any]
    initial_weights_sha256: str
    slide_disjoint: bool
    groups_are: str = "unknown"
    parent_run_id: str | None = None
    work_key: str = ""
    origin: Mapping[str, str] = field(default_factory=lineage.origin)

    def to_json(self) -> dict[str, Any]:
        """As plain values, for ``run.json``; ``RunRecord(**value)`` reads it back."""
        return asdict(self)


def run_name(record: RunRecord) -> str:
    """``finetune d3 lr3e-4``: what tells runs apart in a list."""
    settings = record.params.get(record.stage, {})
    parts = [record.stage]
    if "depth" in settings:
        parts.append(f"d{settings['depth']}")
    if "learning_rate" in settings:
        parts.append(f"lr{_short(settings['learning_rate'])}")
    return " ".join(parts)


def run_params(record: RunRecord) -> dict[str, str]:
    """Every parameter under its dotted name, with the class weights and the schedule as used."""
    nested = {
        **record.params,
        "class_weight": record.class_weights,
        "lr_schedule": record.schedule,
        "n_train": record.dataset.get("n_train"),
        "n_val": record.dataset.get("n_val"),
    }
    return {name: str(value)[:LONGEST_PARAM] for name, value in flatten(nested).items()}


def run_tags(record: RunRecord) -> dict[str, str]:
    """What a person filters runs by."""
    tags = {
        "mlflow.source.name": f"python -m src.{record.stage}",
        "mlflow.source.type": "LOCAL",
        "mlflow.source.git.commit": record.origin["git_commit"],
        "stage": record.stage,
        "initial_weights_sha256": record.initial_weights_sha256,
        "slide_disjoint": str(record.slide_disjoint).lower(),
        "groups_are": record.groups_are,
        WORK_KEY: record.work_key,
        **record.origin,
        **{name: str(record.dataset[name]) for name in _DATA_TAGS if name in record.dataset},
    }
    # not mlflow.parentRunId: the UI would fold fine-tuning away under its head, out of comparison
    if record.parent_run_id is not None:
        tags["head_run_id"] = record.parent_run_id
    return {name: value for name, value in tags.items() if value != ""}


def flat_metrics(nested: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a nested mapping such as ``metrics.json``, under dotted names."""
    return {
        name: float(value)
        for name, value in flatten(nested).items()
        if isinstance(value, Real) and not isinstance(value, bool)
    }


def _short(rate: float) -> str:
    """0.0003 → ``3e-4``, 0.00025 → ``2.5e-4``."""
    mantissa, exponent = f"{rate:.2e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
