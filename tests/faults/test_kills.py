"""Kill -9 at every moment that matters, run again: as if nothing had happened.

The stages run for real, in a copy of the project, on a small ResNet. One project is killed at every
point in turn, the other is left in peace; then they must agree.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
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
    "runtime": {"checkpoint_minutes": 1e-6},
}
CYCLE = {"warmup_fraction": 0.25, "start_divisor": 25, "final_divisor": 1000}


RECIPE = {  # all that has state of its own: random colours, statistics, an optimizer a block
    "train": {"schedule": {"name": "one_cycle", **CYCLE}},
    "finetune": {
        "augment": {"stain": 0.05, "brightness": 0.1, "contrast": 0.1},
        "batch_norm": "train",
        "rate_decay": 0.5,
        "schedule": {"name": "one_cycle", **CYCLE},
    },
}
RESNET50 = {
    "sample": {"n_train": 96},
    "model": {"backbone": "resnet50"},
    "train": {"epochs": 1, "views": 1},
    "finetune": {"depth": 3, "epochs": 1, "batch_size": 8},
}


class Project:
    """A copy of the project, in which stages run in processes that may be killed."""

    def __init__(self, root: Path) -> None:
        self.root = root
        hidden = ("DVC_ROOT", "DVC_STAGE", "DVC_EXP_NAME", "MLFLOW_TRACKING_URI")
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.dying"],
            cwd=root,
            env={name: value for name, value in os.environ.items() if name not in hidden},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def killed_at(self, point: str, stage: str) -> None:
        """Run a stage up to ``point``, where it dies."""
        status, output = self._run(point, stage)
        assert status == -signal.SIGKILL, (point, output)

    def done(self, *command: str) -> str:
        """Run a stage to its end; what it printed."""
        status, output = self._run("", *command)
        assert status == 0, output
        return output

    def model(self, stage: str = "finetuned") -> bytes:
        """The file that the stage left."""
        return (self.root / "models" / stage / "model.keras").read_bytes()

    def fit(self, stage: str = "finetuned") -> dict:
        """What the stage wrote about it."""
        return read_json(self.root / "models" / stage / "fit.json")

    def close(self) -> None:
        """End the process that the stages were forked from."""
        self._server.communicate(timeout=60)

    def _run(self, *request: str) -> tuple[int, str]:
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        status, output = json.loads(self._server.stdout.readline())
        return status, output


def _created(root: Path, *changes: dict) -> Project:
    for name in ("src", "presets", "tests/faults/dying.py"):
        target, source = root / name, paths.ROOT / name
        target.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if source.is_dir() else shutil.copy)(source, target)
    yaml = YAML(typ="safe", pure=True)
    params = yaml.load(paths.ROOT / "presets" / "sample.yaml")
    for section, values in chain.from_iterable(change.items() for change in (SMALL, *changes)):
        params[section].update(values)
    yaml.dump(params, root / "params.yaml")
    project = Project(root)
    for stage in ("sample", "ingest", "split"):
        project.done(stage)
    return project


def _copied(project: Project) -> Project:
    """Without the store, which knows where it lies, and without activations and states."""
    target = project.root.with_name("killed")
    ignored = shutil.ignore_patterns("mlflow.db", "mlruns", ".cache")
    shutil.copytree(project.root, target, ignore=ignored)
    return Project(target)


@contextmanager
def _pair(folder: Path, *changes: dict, with_head: bool) -> Iterator[tuple[Project, Project]]:
    """Two equal projects: (the one that is killed, the one that isn't)."""
    peaceful = _created(folder / "peaceful", *changes)
    if with_head:
        peaceful.done("train")
    killed = _copied(peaceful)
    yield killed, peaceful
    killed.close()
    peaceful.close()


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Iterator[tuple[Project, Project]]:
    """Both fine-tuned, one of them killed at every point on the way."""
    with _pair(tmp_path_factory.mktemp("kills"), with_head=True) as (killed, peaceful):
        peaceful.done("finetune")
        for point in POINTS:
            killed.killed_at(point, "finetune")
        left = [f.name for f in (killed.root / ".cache" / "checkpoints").glob(".*.tmp")]
        assert len(left) <= 1, left  # the last go's; those before it were cleared away
        killed.done("finetune")
        yield killed, peaceful


def test_state_of_every_part_of_a_recipe(tmp_path):
    """Catches random colours, statistics, averages or rates that a checkpoint forgets.

    ``train`` is killed as well, and between the phases nothing is running.
    """
    with _pair(tmp_path, RECIPE, with_head=False) as (killed, peaceful):
        for project in (peaceful, killed):
            if project is killed:
                project.killed_at("within an epoch", "train")
            project.done("train")
            if project is killed:
                project.killed_at("within an epoch", "finetune")
                project.killed_at("between write and rename", "finetune")
            project.done("finetune")
        for stage in ("head", "finetuned"):
            assert killed.fit(stage) == peaceful.fit(stage)
            assert killed.model(stage) == peaceful.model(stage)


def test_the_network_itself(tmp_path):
    """Catches what only ResNet50 has; two trainings from scratch are equal with the default XLA."""
    with _pair(tmp_path, RESNET50, with_head=True) as (killed, peaceful):
        assert "xla_update" in peaceful.fit("head")["environment"]
        peaceful.done("finetune")
        killed.killed_at("within an epoch", "finetune")
        killed.done("finetune")
        assert killed.fit() == peaceful.fit()
        assert killed.model() == peaceful.model()


def _runs(root: Path, stage: str) -> list:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{root / 'mlflow.db'}")
    experiments = [e.experiment_id for e in client.search_experiments()]
    return client.search_runs(experiments, filter_string=f"tags.stage = '{stage}'")


def test_weights_and_fit_are_those_of_the_uninterrupted_run(finished):
    """Catches anything that a checkpoint forgets: fit.json must be equal, the model bit by bit."""
    killed, peaceful = finished
    assert killed.fit() == peaceful.fit()
    assert killed.model() == peaceful.model()


def test_all_goes_are_one_run_with_one_point_a_step(finished):
    """Catches a run for every go, points logged twice, and a model uploaded in part."""
    from mlflow import MlflowClient

    killed, peaceful = (project.root for project in finished)
    (run,) = _runs(killed, "finetune")
    assert run.info.status == "FINISHED"
    client = MlflowClient(f"sqlite:///{killed / 'mlflow.db'}")
    for name in run.data.metrics:
        steps = [point.step for point in client.get_metric_history(run.info.run_id, name)]
        assert len(steps) == len(set(steps)), name
    (undisturbed,) = _runs(peaceful, "finetune")
    times = {"epoch_s", "wall_s"}
    for name in run.data.metrics.keys() - times:
        assert run.data.metrics[name] == undisturbed.data.metrics[name], name
    (model,) = client.search_logged_models(
        [run.info.experiment_id], filter_string=(f"source_run_id = '{run.info.run_id}'")
    )
    assert model.status == "READY"


def test_a_finished_phase_is_not_repeated(finished):
    """Catches an hour lost because DVC deletes the outputs of a stage that it runs again."""
    project = finished[0]
    before = project.model()
    shutil.rmtree(project.root / "models" / "finetuned")
    assert "was finished before" in project.done("finetune")
    assert project.model() == before
    assert len(_runs(project.root, "finetune")) == 1


def test_fresh_starts_from_nothing_and_gives_the_same(finished):
    """Catches a --fresh that goes on all the same, and training that isn't deterministic."""
    project = finished[0]
    before = project.model()
    assert "epoch 1/3" in project.done("finetune", "--fresh")
    assert project.model() == before
    assert len(_runs(project.root, "finetune")) == 2
