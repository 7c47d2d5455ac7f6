"""How a phase's step is computed, by device and parameters, and that it can be computed so."""

import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from multiprocessing import get_context
from pathlib import Path

import pytest
import tensorflow as tf

from src import paths
from src.model.backbone import BACKBONES
from src.model.classifier import build_classifier
from src.model.step import mirrored_scope, step_ways
from src.model.training import fit_phase
from src.params import load_params
from src.system.determinism import start_tensorflow
from src.system.log import get_logger
from tests.model.support import labelled, random_patches, runtime_params

pytestmark = [pytest.mark.tensorflow, pytest.mark.timeout(300)]

DEEPEST = len(BACKBONES["resnet_tiny"].blocks)
N = 4  # patches of the one batch


@pytest.mark.parametrize(
    ("depth", "n_gpus", "changes", "ways"),
    [
        (0, 0, {}, set()),  # one dense layer: neither pays
        (1, 0, {}, {"fast_gradient", "xla_update"}),
        (15, 0, {"xla": "on"}, {"fast_gradient", "xla_update", "xla"}),
        (16, 0, {"xla": "on"}, {"fast_gradient", "xla_update"}),
        (16, 0, {"xla": "off"}, {"fast_gradient"}),
        (3, 0, {"mixed_precision": "on"}, {"bfloat16", "xla_update"}),  # fast in float32 only
        (15, 1, {}, {"xla", "xla_update"}),
        (16, 1, {}, {"xla_update"}),  # the stem's pooling has no deterministic gradient under XLA
        (16, 1, {"deterministic": False}, {"xla", "xla_update"}),
        (3, 2, {"xla": "on"}, set()),  # the step of several GPUs isn't one function
    ],
)
def test_how_a_step_is_computed(depth, n_gpus, changes, ways):
    """Catches the slow gradient on a CPU, and a fit.json that names what wasn't used."""
    how = step_ways(runtime_params(**changes), backbone="resnet50", depth=depth, n_gpus=n_gpus)
    assert {name for name, used in how.items() if used} == ways


@pytest.fixture(scope="module")
def fresh_processes() -> Iterator[ProcessPoolExecutor]:
    """A process for each task, forked from one that has imported TensorFlow and started nothing:
    determinism and virtual devices are set for a whole process."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["keras", "tensorflow"])
    with ProcessPoolExecutor(1, context, max_tasks_per_child=1) as pool:
        yield pool


@pytest.mark.parametrize("n_gpus", [0, 1, 2])
@pytest.mark.parametrize(
    ("preset", "depth"),
    [
        pytest.param(preset, depth, id=f"{preset.stem}-{depth}")
        for preset in sorted((paths.ROOT / "presets").glob("*.yaml"))
        for depth in sorted({min(load_params(preset).finetune.depth, DEEPEST), DEEPEST})
    ],
)
def test_every_preset_trains(preset, depth, n_gpus, fresh_processes):
    """Catches ways of computing a step that TensorFlow refuses on the machine they are meant for,
    hours into the run."""
    epochs = fresh_processes.submit(train_a_step, preset, depth, n_gpus).result()
    assert epochs == 1


def train_a_step(preset: Path, depth: int, n_gpus: int) -> int:
    """Fine-tune ``resnet_tiny`` by a preset for one epoch of one step; how many epochs there were.

    On a CPU, in the ways chosen for so many GPUs, of the kind that has bfloat16; two of them are
    two virtual CPUs.
    """
    cpu = tf.config.list_physical_devices("CPU")[0]
    virtual = [tf.config.LogicalDeviceConfiguration()] * max(n_gpus, 1)
    tf.config.set_logical_device_configuration(cpu, virtual)
    params = load_params(preset)
    device = {"device": "cpu", "mixed_precision": "on" if n_gpus else "auto"}
    params = params.with_values(
        {
            **{f"runtime.{name}": value for name, value in device.items()},
            "model.backbone": "resnet_tiny",
            "model.weights": "none",
            "finetune.epochs": 1,
            "finetune.batch_size": N,
            "finetune.depth": depth,
        }
    )
    assert params.runtime.deterministic
    environment = {**start_tensorflow(params.runtime, seed=1), "gpus": n_gpus}
    scope = mirrored_scope([f"CPU:{i}" for i in range(n_gpus)]) if n_gpus > 1 else nullcontext()
    with scope, tempfile.TemporaryDirectory() as folder:
        paths.ACTIVATIONS = Path(folder)
        fitted = fit_phase(
            build_classifier(params.model),
            labelled(random_patches(N), [0, 1, 0, 1]),
            labelled(random_patches(N), [0, 1, 0, 1], split="val"),
            params,
            "finetune",
            environment=environment,
            checkpoint=None,
            on_epoch=lambda _: None,
            log=get_logger("test"),
        )
    return len(fitted.facts["history"])
