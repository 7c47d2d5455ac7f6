"""Our training engine beside plain Keras and PyTorch: ``python -m benchmarks.training``.

Same patches, depths, batch size and optimizer, in one run: every way has a process of its own, and
they take turns, so that a busy machine slows them alike. PyTorch takes part where it is installed
(``pip install '.[torch]'``; never a dependency). Times are of training alone: no validation,
checkpoint or log. Our commands turn oneDNN on. Plain Keras has it on here too;
``--keras-no-onednn`` leaves it off there, as TensorFlow does by itself on processors without
AVX512-VNNI.
"""

import importlib.util
import multiprocessing
import os
import resource
from dataclasses import dataclass
from multiprocessing.connection import Connection
from statistics import median
from typing import Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.training_ways import WAYS, generate
from src.system.determinism import usable_cores

N_VAL = 300
SCRATCH_ROWS = {"head, 10 epochs and cache fill": (0, 10), "depth 3, 5 epochs and fill": (3, 5)}
STEADY_ROWS = {"head": 0, "depth 3": 3, "depth 9": 9, "all layers": 16}
# Times plain Keras, times PyTorch. What cached activations and fast gradients gained on the first
# machine, where the stock gradients were slow (AVX2, no oneDNN); never slower than PyTorch.
TARGETS = {
    "head": (50, None),
    "depth 3": (5, 2.5),
    "depth 9": (3, 1),
    "all layers": (1.7, 1),
    "depth 3, 5 epochs and fill": (3, None),
}


@dataclass
class Worker:
    """A process that trains in one way, asked through a pipe."""

    process: Any
    pipe: Connection

    def ask(self, *request: Any) -> Any:
        """Send a request and wait for its answer."""
        self.pipe.send(request)
        return self.pipe.recv()


def main(
    patches: int = 384, repeats: int = 3, threads: int = 0, *, keras_no_onednn: bool = False
) -> None:
    """Print the table: patches/s of every way, and how many times faster ours is."""
    onednn = {"keras": "0" if keras_no_onednn else "1"}
    threads = threads or usable_cores()
    print(f"oneDNN in plain Keras: {'off' if keras_no_onednn else 'on'}", flush=True)
    names = [name for name in WAYS if name != "torch" or importlib.util.find_spec("torch")]
    context = multiprocessing.get_context("spawn")
    workers = {name: _start(context, name, patches, threads, onednn.get(name)) for name in names}
    console = Console(width=110)
    console.print(_steady(workers, patches, repeats, threads))
    console.print(_whole_runs(workers, patches, repeats))
    peaks = {name: worker.ask("peak") for name, worker in workers.items()}
    console.print("peak memory, MB: " + ", ".join(f"{n} {p / 1e6:,.0f}" for n, p in peaks.items()))
    for worker in workers.values():
        worker.pipe.send(("stop",))
        worker.process.join()


def _start(context: Any, name: str, patches: int, threads: int, onednn: str | None) -> Worker:
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(name, patches, threads, onednn, theirs))
    process.start()
    return Worker(process, ours)


def _serve(name: str, patches: int, threads: int, onednn: str | None, pipe: Connection) -> None:
    if onednn is not None:
        os.environ["TF_ENABLE_ONEDNN_OPTS"] = onednn
    way = WAYS[name](generate(patches, N_VAL), threads)
    while (request := pipe.recv())[0] != "stop":
        kind, *values = request
        if kind == "build":
            way.build(*values)
            answer: Any = None
        elif kind == "epoch":
            answer = way.timed_epoch(*values)
        elif kind == "whole":
            answer = way.whole_run(*values)
        else:
            answer = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        pipe.send(answer)


def _steady(workers: dict[str, Worker], patches: int, repeats: int, threads: int) -> Table:
    table = _table(f"steady epoch, {patches} patches, {threads} threads: patches/s", workers)
    for row, depth in STEADY_ROWS.items():
        seconds: dict[str, list[float]] = {name: [] for name in workers}
        for worker in workers.values():
            worker.ask("build", depth, 1)
            for warm_up in (1, 2):  # compiles, and fills the cache in both views
                worker.ask("epoch", warm_up)
        for repeat in range(repeats):
            for name, worker in workers.items():
                seconds[name].append(worker.ask("epoch", 3 + repeat))
        speeds = {name: patches / median(times) for name, times in seconds.items()}
        table.add_row(row, *_cells(speeds, TARGETS.get(row)))
        _say(row, speeds)
    return table


def _whole_runs(workers: dict[str, Worker], patches: int, repeats: int) -> Table:
    table = _table("from the built network, with its compilation: patches/s", workers)
    table.add_column("val AUROC by seed", justify="left")
    for row, (depth, epochs) in SCRATCH_ROWS.items():
        runs: dict[str, list[tuple[float, float]]] = {name: [] for name in workers}
        for seed in range(1, repeats + 1):
            for name, worker in workers.items():
                runs[name].append(worker.ask("whole", depth, seed, epochs))
        speeds = {n: patches * epochs / median(s for s, _ in r) for n, r in runs.items()}
        scores = "; ".join(f"{n} {_spread([a for _, a in r])}" for n, r in runs.items())
        table.add_row(row, *_cells(speeds, TARGETS.get(row)), scores)
        _say(row, speeds)
    return table


def _say(row: str, speeds: dict[str, float]) -> None:
    """A line as each row is done: the whole takes a quarter of an hour."""
    told = ", ".join(f"{name} {speed:,.1f}" for name, speed in speeds.items())
    print(f"{row}: {told} patches/s", flush=True)


def _table(title: str, workers: dict[str, Worker]) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for name in workers:
        table.add_column(name, justify="right")
    for name in workers:
        if name != "ours":
            table.add_column(f"ours / {name} (target)", justify="right")
    return table


def _cells(
    speeds: dict[str, float], targets: tuple[float | None, float | None] | None
) -> list[str]:
    goals = dict(zip(("keras", "torch"), targets or (None, None), strict=True))
    ratios = [
        f"{speeds['ours'] / speed:.1f}" + (f" ({goals[name]:g})" if goals[name] else "")
        for name, speed in speeds.items()
        if name != "ours"
    ]
    return [*(f"{speed:,.0f}" for speed in speeds.values()), *ratios]


def _spread(scores: list[float]) -> str:
    return f"{np.mean(scores):.3f} ({min(scores):.3f} to {max(scores):.3f})"


if __name__ == "__main__":
    typer.run(main)
