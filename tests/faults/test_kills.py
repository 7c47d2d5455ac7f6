"""Kill -9 at every moment that matters, run again: as if nothing had happened.

The stages run for real, in a copy of the project, on a small ResNet. One project is killed at every
point in turn, the other is left in peace; then they must agree.
"""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from src import paths
from src.system.durable import read_json
from tests.faults.dying import POINTS

pytestmark = [pytest.mark.tensorflow, pytest.mark.timeout(900)]

SMALL = {
    "sample": {"n_train": 320, "n_test": 20, "n_train_slides": 10, "n_test_slides": 2},
    "model": {"backbone": "resnet_tiny", "input_size": 32},
    "train": {"epochs": 2, "views": 2},
    "finetune": {
        "epochs": 3,
        "depth": 2,
        "views": 2,
        "optimizer": "adamw",
        "weight_decay": 0.01,
        "average_decay": 0.9,
    },
    "runtime": {"checkpoint_minutes": 1e-6, "xla": "off"},
}


def _stage(root: Path, *command: str) -> subprocess.CompletedProcess[str]:
    hidden = ("DVC_ROOT", "DVC_STAGE", "DVC_EXP_NAME", "MLFLOW_TRACKING_URI")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    command = (sys.executable, "-m", *command)
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)


def _done(root: Path, *command: str) -> str:
    done = _stage(root, *command)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def projects(tmp_path_factory) -> tuple[Path, Path]:
    """Two equal projects with a trained head; (the one that is killed, the one that isn't)."""
    peaceful = tmp_path_factory.mktemp("kills") / "peaceful"
    for name in ("src", "presets", "tests/faults/dying.py"):
        target, source = peaceful / name, paths.ROOT / name
        target.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if source.is_dir() else shutil.copy)(source, target)
    yaml = YAML(typ="safe", pure=True)
    params = yaml.load(paths.ROOT / "presets" / "sample.yaml")
    for section, values in SMALL.items():
        params[section].update(values)
    yaml.dump(params, peaceful / "params.yaml")
    for stage in ("sample", "ingest", "split", "train"):
        _done(peaceful, f"src.{stage}")
    killed = peaceful.with_name("killed")
    # without the store, which knows where it lies, and without activations to be computed
    shutil.copytree(
        peaceful, killed, ignore=shutil.ignore_patterns("mlflow.db", "mlruns", ".cache")
    )
    return killed, peaceful


@pytest.fixture(scope="module")
def finished(projects) -> tuple[Path, Path]:
    """Both fine-tuned, one of them killed at every point on the way."""
    killed, peaceful = projects
    _done(peaceful, "src.finetune")
    for point in POINTS:
        died = _stage(killed, "tests.faults.dying", point, "finetune")
        assert died.returncode == -signal.SIGKILL, (point, died.stdout + died.stderr)
    _done(killed, "src.finetune")
    return killed, peaceful


def _runs(root: Path, stage: str) -> list:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{root / 'mlflow.db'}")
    experiments = [e.experiment_id for e in client.search_experiments()]
    return client.search_runs(experiments, filter_string=f"tags.stage = '{stage}'")


def test_weights_and_fit_are_those_of_the_uninterrupted_run(finished):
    """Catches anything that a checkpoint forgets: fit.json must be equal, the model bit by bit."""
    fits = [read_json(root / "models" / "finetuned" / "fit.json") for root in finished]
    assert fits[0] == fits[1]
    models = [(root / "models" / "finetuned" / "model.keras").read_bytes() for root in finished]
    assert models[0] == models[1]


def test_all_goes_are_one_run_with_one_point_a_step(finished):
    """Catches a run for every go, points logged twice, and a model uploaded in part."""
    from mlflow import MlflowClient

    (run,) = _runs(finished[0], "finetune")
    assert run.info.status == "FINISHED"
    client = MlflowClient(f"sqlite:///{finished[0] / 'mlflow.db'}")
    for name in run.data.metrics:
        steps = [point.step for point in client.get_metric_history(run.info.run_id, name)]
        assert len(steps) == len(set(steps)), name
    (peaceful,) = _runs(finished[1], "finetune")
    times = {"epoch_s", "wall_s"}
    for name in run.data.metrics.keys() - times:
        assert run.data.metrics[name] == peaceful.data.metrics[name], name
    (model,) = client.search_logged_models(
        [run.info.experiment_id], filter_string=(f"source_run_id = '{run.info.run_id}'")
    )
    assert model.status == "READY"


def test_a_finished_phase_is_not_repeated(finished):
    """Catches an hour lost because DVC deletes the outputs of a stage that it runs again."""
    root = finished[0]
    before = (root / "models" / "finetuned" / "model.keras").read_bytes()
    shutil.rmtree(root / "models" / "finetuned")
    assert "was finished before" in _done(root, "src.finetune")
    assert (root / "models" / "finetuned" / "model.keras").read_bytes() == before
    assert len(_runs(root, "finetune")) == 1


def test_fresh_starts_from_nothing_and_gives_the_same(finished):
    """Catches a --fresh that goes on all the same, and training that isn't deterministic."""
    root = finished[0]
    before = (root / "models" / "finetuned" / "model.keras").read_bytes()
    output = _done(root, "src.finetune", "--fresh")
    assert "epoch 1/3" in output
    assert (root / "models" / "finetuned" / "model.keras").read_bytes() == before
    assert len(_runs(root, "finetune")) == 2
