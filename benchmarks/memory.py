"""Memory of fine-tuning at Kaggle's size: ``python -m benchmarks.memory``.

A packed file of 165,000 patches (sparse: 4.6 GB that take no disk), the default preset's recipe,
and of every epoch a bounded number of steps and a checkpoint, in a process of its own. Activations
are computed and not kept: kept ones are read row by row and take less. Resident memory (RSS) after
every epoch and at its peak.
"""

import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from benchmarks.measured import resident_bytes, run_measured
from benchmarks.training_ways import Data, begin_training
from src.data.dataset import LabelledPatches
from src.params import Params, load_params
from src.paths import ROOT


class Enough(Exception):
    """The steps of this epoch are done."""


def main(
    patches: int = 165_000,
    steps: int = 40,
    epochs: int = 5,
    depth: int = 3,
    *,
    child: Annotated[bool, typer.Option(hidden=True)] = False,
) -> None:
    """Print resident memory after every epoch, and the peak of the whole process."""
    if child:
        return _train(patches, steps, epochs, depth)
    sizes = {"patches": patches, "steps": steps, "epochs": epochs, "depth": depth}
    options = [f"--{name}={value}" for name, value in sizes.items()]
    measured = run_measured([sys.executable, "-m", "benchmarks.memory", "--child", *options])
    print(f"peak of all processes {measured.peak_bytes / 1e9:.2f} GB (target 2.5), sampled")
    return None


def _train(patches: int, steps: int, epochs: int, depth: int) -> None:
    with (
        tempfile.TemporaryDirectory(prefix="hcd-") as name,
        _training(patches, steps, depth, Path(name)) as training,
    ):
        for epoch in range(1, epochs + 1):
            try:
                training.train_epoch(epoch, time.monotonic())
            except Enough:
                training.steps_done, training.loss_sum = 0, 0.0
            training._save()
            print(f"epoch {epoch}: {resident_bytes() / 1e9:.3f} GB resident", flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(f"peak {peak / 1e9:.2f} GB", flush=True)


@contextmanager
def _training(patches: int, steps: int, depth: int, folder: Path) -> Iterator[Any]:
    """The real phase over the packed file, which ends every epoch after so many steps."""
    from src.model.classifier import build_classifier
    from src.system.determinism import start_tensorflow

    params = _params(depth)
    environment = start_tensorflow(params.runtime, seed=1)
    model = build_classifier(params.model)
    with ExitStack() as stack:
        data = _data(patches, folder)
        training = begin_training(model, data, params, environment, folder, stack)
        training.train_inputs = Bounded(training.train_inputs, steps)
        yield training


class Bounded:
    """Inputs that end a pass after so many batches."""

    def __init__(self, inputs: Any, steps: int) -> None:
        self._inputs = inputs
        self._steps = steps
        self._taken = 0

    def prepare(self, views: Any) -> None:
        """A new pass."""
        self._taken = 0
        self._inputs.prepare(views)

    def __call__(self, batch: Any) -> Any:
        self._taken += 1
        if self._taken > self._steps:
            raise Enough
        return self._inputs(batch)


def _params(depth: int) -> Params:
    params = load_params(ROOT / "presets" / "sample.yaml")
    return params.with_values({"finetune.depth": depth, "cache.max_gb": 0})


def _data(n: int, folder: Path) -> Data:
    path = folder / "train.npy"
    np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=(n, 96, 96, 3))
    pixels = np.load(path, mmap_mode="r")
    rng = np.random.default_rng(1)
    ids = np.array([f"{i:040x}" for i in range(n)])
    labels = rng.integers(0, 2, n).astype(np.uint8)

    def split(name: str, rows: Any) -> LabelledPatches:
        chosen = ids[rows], rows, labels[rows], ids[rows]
        return LabelledPatches(name, *chosen, pixels, pixels_sha256="sparse")

    rows = rng.permutation(n)
    return Data(split("train", rows), split("val", rows[: n // 10]))


if __name__ == "__main__":
    typer.run(main)
