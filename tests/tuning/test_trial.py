"""Trials of one process: each as if it were the first; and the patches they see."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from src import paths
from src.params import Params, load_params
from src.system.determinism import start_tensorflow
from src.system.log import get_logger
from src.tuning import trial as trial_module
from src.tuning.space import TuneError
from src.tuning.trial import (
    Search,
    SearchData,
    check_depths,
    load_data,
    run_trial,
    subset_of,
)
from tests.model.support import labelled, random_patches, runtime_params
from tests.tuning.support import params, tune

pytestmark = [pytest.mark.tensorflow, pytest.mark.timeout(900)]

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
    monkeypatch.setattr(paths, "ACTIVATIONS", folder / "activations")
    search = Search(
        SearchData(
            labelled(random_patches(96), [i % 2 for i in range(96)]),
            labelled(random_patches(32, seed=1), [i % 2 for i in range(32)], split="val"),
        ),
        start_tensorflow(runtime_params(xla="off"), seed=1),
        get_logger("test"),
        depths=depths,
    )
    return [run_trial(_params(values), search)[1]["final_weights_sha256"] for values in trials]


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


def test_holdout_stays_closed(monkeypatch):
    """Catches a search that looks at the patches its result is judged on."""
    opened = []

    def load(split):
        assert split != "holdout", "unreadable"
        opened.append(split)
        return labelled(random_patches(4), [0, 1, 0, 1], split=split)

    monkeypatch.setattr(trial_module, "load_split", load)
    load_data(subset=None, seed=1)
    assert opened == ["train", "val"]


def test_a_subset_keeps_the_classes_and_the_order():
    """Catches a subset of one class, another at every start, and labels of other patches."""
    patches = labelled(random_patches(40), [1, 0, 0, 0] * 10)
    few = subset_of(patches, 20, seed=1)
    assert len(few) == 20
    assert few.labels.sum() == 5
    assert list(few.ids) == sorted(few.ids)
    assert np.array_equal(few.labels, patches.labels[few.rows])
    assert np.array_equal(few.ids, subset_of(patches, 20, seed=1).ids)
    assert few.digest != patches.digest


@pytest.mark.parametrize("n", [40, 41])
def test_a_subset_of_all_is_all(n):
    """Catches patches drawn twice (both sides of the boundary)."""
    patches = labelled(random_patches(40), [1, 0, 0, 0] * 10)
    assert subset_of(patches, n, seed=1) is patches


def test_a_depth_that_the_backbone_lacks_is_refused():
    """Catches a study whose trials fail one after another with TooDeep."""
    tiny = params(**{"model.backbone": "resnet_tiny"})
    check_depths(tiny)
    deep = tiny.model_copy(update={"tune": tune(space={"finetune.depth": {"choice": [4, 5]}})})
    with pytest.raises(TuneError, match="≤ 4, the residual blocks of resnet_tiny"):
        check_depths(deep)
