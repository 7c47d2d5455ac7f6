"""``src.tune`` for real on a small ResNet: equal to the stages, two at once, killed, stopped."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState
from ruamel.yaml import YAML

from src import paths
from src.system.durable import read_json, write_manifest
from src.tuning.study import COUNTED, count

pytestmark = [pytest.mark.tensorflow, pytest.mark.timeout(900)]

SMALL = {
    "sample": {"n_train": 320, "n_test": 20, "n_train_slides": 10, "n_test_slides": 2},
    "model": {"backbone": "resnet_tiny", "input_size": 32},
    "train": {"epochs": 2, "views": 2},
    "finetune": {"epochs": 2, "depth": 2, "views": 2},
    "tune": {"n_trials": 4, "epochs": None},
    "runtime": {"xla": "off"},
}


def _begin(root: Path, *command: str) -> subprocess.Popen[str]:
    hidden = ("DVC_ROOT", "DVC_STAGE", "DVC_EXP_NAME", "MLFLOW_TRACKING_URI")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    return subprocess.Popen(
        (sys.executable, "-m", *command),
        cwd=root,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _end(process: subprocess.Popen[str]) -> str:
    output = process.communicate()[0]
    assert process.returncode == 0, output
    return output


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A project whose data is split; two ``src.tune`` have run there at once, on nothing."""
    root = tmp_path_factory.mktemp("tune") / "project"
    for name in ("src", "presets"):
        shutil.copytree(paths.ROOT / name, root / name)
    yaml = YAML(typ="safe", pure=True)
    params = yaml.load(paths.ROOT / "presets" / "sample.yaml")
    for section, values in SMALL.items():
        params[section].update(values)
    yaml.dump(params, root / "params.yaml")
    for stage in ("sample", "ingest", "split"):
        _end(_begin(root, f"src.{stage}"))
    for process in [_begin(root, "src.tune"), _begin(root, "src.tune")]:
        _end(process)
    return root


def _trials(root: Path, study: str = "tune") -> list[optuna.trial.FrozenTrial]:
    url = f"sqlite:///{root / 'tune.db'}"
    return optuna.load_study(study_name=study, storage=url).get_trials(deepcopy=False)


def _statuses(root: Path) -> set[str]:
    return {run.info.status for run in _runs(root)}


def _runs(root: Path, stage: str | None = None) -> list:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{root / 'mlflow.db'}")
    experiments = [e.experiment_id for e in client.search_experiments()]
    only = "" if stage is None else f"tags.stage = '{stage}'"
    return client.search_runs(experiments, filter_string=only)


def test_two_at_once_share_a_fresh_project(project):
    """Catches a race for tables, a budget run twice, and parents that are left RUNNING."""
    trials = _trials(project)
    assert 4 <= count(trials, *COUNTED) == len(trials) <= 5
    assert _statuses(project) == {"FINISHED"}
    assert len(_runs(project, "tune")) == 1
    assert len(_runs(project, "trial")) == len(trials)
    assert _best(trials).number in _trials_with_a_model(project)


def _best(trials: list[optuna.trial.FrozenTrial]) -> optuna.trial.FrozenTrial:
    return max((t for t in trials if t.state.name == "COMPLETE"), key=lambda t: t.value)


def _trials_with_a_model(root: Path) -> set[int]:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{root / 'mlflow.db'}")
    runs = {run.info.run_id: run for run in _runs(root, "trial")}
    models = client.search_logged_models([e.experiment_id for e in client.search_experiments()])
    return {int(runs[model.source_run_id].data.tags["trial"]) for model in models}


def test_a_trial_is_train_and_finetune(project):
    """Catches any drift between a trial and the stages: the weights must be equal, bit by bit."""
    for stage in ("train", "finetune"):
        _end(_begin(project, f"src.{stage}"))
    fit = read_json(project / "models" / "finetuned" / "fit.json")
    present = _trials(project)[0]
    assert present.user_attrs["present"]
    assert present.user_attrs["final_weights_sha256"] == fit["final_weights_sha256"]


def test_the_same_seed_gives_the_same_trials_whatever_holdout_holds(project):
    """Catches holdout in a search, a seed that isn't used, and a trial that changes the next."""
    _end(_begin(project, "src.tune", "--study", "before", "--trials", "2"))
    _spoil_holdout(project)
    _end(_begin(project, "src.tune", "--study", "after", "--trials", "2"))
    before, after = _trials(project, "before"), _trials(project, "after")
    assert [t.params for t in after] == [t.params for t in before]
    assert [_ended(t) for t in after] == [_ended(t) for t in before]
    assert _ended(after[0]) == _ended(_trials(project)[0])


def _ended(trial: optuna.trial.FrozenTrial) -> str | None:
    """Digest of its final weights; a pruned trial has none."""
    return trial.user_attrs.get("final_weights_sha256")


def test_killed_worker_and_parent_then_the_same_command(project):
    """Catches a study that ends with one of its workers, and runs left RUNNING."""
    command = ("src.tune", "--study", "killed", "--workers", "2")
    parent = _begin(project, *command)
    first = _wait_for(project, "killed", _is_training)
    os.kill(_pid_of(project, first), signal.SIGKILL)
    _wait_for(project, "killed", lambda t: t.number != first.number and t.state.is_finished())
    assert parent.poll() is None
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    _end(_begin(project, *command))
    assert count(_trials(project, "killed"), *COUNTED) >= 4
    assert "RUNNING" not in _statuses(project)


def test_ctrl_c_ends_cleanly_and_apply_writes_the_best(project):
    """Catches a stop that leaves a trial or a run RUNNING, and --apply that writes another."""
    command = ("src.tune", "--study", "stopped")
    parent = _begin(project, *command)
    _wait_for(project, "stopped", _is_training)
    parent.send_signal(signal.SIGINT)
    parent.communicate()
    assert parent.returncode == 130
    assert not count(_trials(project, "stopped"), TrialState.RUNNING)
    assert "RUNNING" not in _statuses(project)
    _end(_begin(project, *command, "--apply"))
    assert count(_trials(project, "stopped"), *COUNTED) == 4
    yaml = YAML(typ="safe", pure=True)
    best = yaml.load(project / "reports" / "tune" / "best.yaml")
    applied = yaml.load(project / "params.yaml")
    assert applied["finetune"] == applied["finetune"] | best["finetune"]
    assert applied["train"]["learning_rate"] == best["train"]["learning_rate"]


def test_the_gain_is_confirmed_with_other_seeds(project):
    """Catches a gain that isn't that of the trainings."""
    yaml = YAML()
    params = yaml.load(project / "params.yaml")
    params["finetune"]["learning_rate"] = 0.00033  # no trial had it, so the best is another
    yaml.dump(params, project / "params.yaml")
    said = _end(_begin(project, "src.tune", "--study", "stopped", "--confirm"))
    found = read_json(project / "reports" / "tune" / "confirmation.json")
    assert found["seeds"] == [2, 3, 4]
    differences = [b - p for b, p in zip(found["best"], found["present"], strict=True)]
    assert found["gain"] == pytest.approx(sum(differences) / 3)
    assert len(set(found["present"] + found["best"])) > 1
    assert f"gain over the present params.yaml: {found['gain']:+.4f} (" in said


def _is_training(trial: optuna.trial.FrozenTrial) -> bool:
    return trial.state == TrialState.RUNNING and bool(trial.user_attrs.get("run_id"))


def _pid_of(root: Path, trial: optuna.trial.FrozenTrial) -> int:
    (run,) = [r for r in _runs(root, "trial") if r.info.run_id == trial.user_attrs["run_id"]]
    return int(run.data.tags["hcd.pid"])


def _wait_for(root: Path, study: str, holds) -> optuna.trial.FrozenTrial:
    until = time.monotonic() + 200
    while time.monotonic() < until:
        time.sleep(0.2)
        try:
            trials = _trials(root, study)
        except KeyError:
            continue
        for trial in trials:
            if holds(trial):
                return trial
    raise AssertionError("it never came")


def _spoil_holdout(root: Path) -> None:
    """Turn the pixels of holdout to noise and its labels round; manifests agree again."""
    import numpy as np
    import pandas as pd

    ingest = root / "data" / "ingest"
    split = pd.read_parquet(root / "data" / "split" / "split.parquet")
    patches = pd.read_parquet(ingest / "patches.parquet")
    is_holdout = patches["id"].isin(split.loc[split["split"] == "holdout", "id"])
    pixels = np.load(ingest / "train.npy")
    rows = patches.loc[is_holdout, "row"].to_numpy()
    pixels[rows] = np.random.default_rng(0).integers(0, 256, pixels[rows].shape, np.uint8)
    np.save(ingest / "train.npy", pixels)
    patches.loc[is_holdout, "label"] = 1 - patches.loc[is_holdout, "label"]
    patches.to_parquet(ingest / "patches.parquet")
    write_manifest(ingest)
