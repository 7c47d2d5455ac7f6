"""Trials of one process: each as if it were the first."""

from typing import Any

import pytest

from src import paths
from src.params import Params, load_params
from src.system.log import get_logger
from src.tuning.phase import Search
from src.tuning.search_data import SearchData
from src.tuning.trial import Trials
from tests.model.support import labelled, random_patches, runtime_params

pytestmark = pytest.mark.tensorflow

BASE = {
    "model.backbone": "resnet_tiny",
    "model.input_size": 32,
    "model.dropout": 0.4,
    "train.epochs": 1,
    "finetune.epochs": 2,
    "finetune.learning_rate": 0.01,
}
TRIALS: list[dict[str, Any]] = [
    {"finetune.depth": 3, "finetune.batch_norm": "train", "finetune.average_decay": 0.9},
    {"finetune.depth": 1, "finetune.batch_norm": "frozen"},
    {"finetune.depth": 4, "finetune.augment": {"stain": 0.05, "brightness": 0.1, "contrast": 0.1}},
    {"finetune.depth": 0, "train.learning_rate": 0.002},  # another head
]


def _params(values: dict[str, Any]) -> Params:
    return load_params(paths.ROOT / "presets" / "sample.yaml").with_values({**BASE, **values})


def _digests(folder, monkeypatch, trials: list[dict[str, Any]], *, depths=()) -> list[str]:
    """Of the final weights of trials that one process runs, with nothing kept before."""
    from src.system.determinism import start_tensorflow

    monkeypatch.setattr(paths, "ACTIVATIONS", folder / "activations")
    search = Search(
        SearchData(
            labelled(random_patches(96), [i % 2 for i in range(96)]),
            labelled(random_patches(32, seed=1), [i % 2 for i in range(32)], split="val"),
        ),
        start_tensorflow(runtime_params(xla="off"), seed=1),
        get_logger("test"),
        depths=depths,
        heads=folder / "heads",
    )
    runner = Trials(search)
    return [runner.run(_params(values)).fit["final_weights_sha256"] for values in trials]


def test_a_trial_finds_nothing_of_those_before(tmp_path, monkeypatch):
    """Catches weights, statistics, dropout's random state or freezing left by another trial, and
    activations that were kept for it on the way and are not its own."""
    alone = [_digests(tmp_path / str(i), monkeypatch, [trial])[0] for i, trial in enumerate(TRIALS)]
    order = [0, 1, 2, 0, 3, 1]
    mixed = _digests(
        tmp_path / "mixed", monkeypatch, [TRIALS[i] for i in order], depths=(0, 1, 2, 3, 4)
    )
    assert mixed == [alone[i] for i in order]
    assert len(set(alone)) == len(TRIALS)
