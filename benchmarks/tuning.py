"""A search in our way beside the usual one: ``python -m benchmarks.tuning``.

Twelve configurations (depths 0, 1, 3; four rates), each a head and then a fine-tuning of ``epochs``
epochs, on the same generated patches. The usual way: every trial builds the whole network and calls
Keras' ``fit`` twice. Ours: ``src.tuning.trial`` with its shared activations and heads, by one
process and by two that take turns at the configurations. Times begin when TensorFlow is there.
"""

import math
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from typer import run

from benchmarks.measured import runtime
from benchmarks.training_ways import Data, generate
from src.params import Params

RunOne = Callable[[Params], float]
"""Parameters of a trial → its best val AUROC."""

N_VAL = 300
DEPTHS = (0, 1, 3)
RATES = (5e-6, 1e-5, 2e-5, 4e-5)
CONFIGURATIONS = [(depth, rate) for depth in DEPTHS for rate in RATES]
TARGET, TARGET_TWO, TOLERANCE = 6.0, 0.9, 0.02


def main(patches: int = 800, epochs: int = 4, backbone: str = "resnet50") -> None:
    """Print seconds and val AUROC of the usual way, ours, and ours with two workers."""
    threads = os.cpu_count() or 1
    ways = {
        "usual": [(_usual, CONFIGURATIONS, threads)],
        "ours": [(_ours, CONFIGURATIONS, threads)],
        "ours, 2 workers": [(_ours, CONFIGURATIONS[i::2], max(1, threads // 2)) for i in (0, 1)],
    }
    found = {name: _timed(parts, patches, epochs, backbone) for name, parts in ways.items()}
    table = Table(title=f"{len(CONFIGURATIONS)} trials, {patches} patches, {threads} threads")
    for column in ("way", "wall s", "times usual", "best val AUROC", "largest difference"):
        table.add_column(column)
    usual_s, usual = found["usual"]
    for name, (wall_s, scores) in found.items():
        difference = max(abs(scores[c] - usual[c]) for c in CONFIGURATIONS)
        row = (f"{wall_s:,.0f}", f"{usual_s / wall_s:.1f}", f"{max(scores.values()):.3f}")
        table.add_row(name, *row, f"{difference:.3f}")
    console = Console(width=100)
    console.print(table)
    one_s, two_s = found["ours"][0], found["ours, 2 workers"][0]
    console.print(
        f"target: {TARGET:g} times the usual; two workers {one_s / two_s:.2f} times one, target "
        f"{TARGET_TWO:g}; difference in AUROC within {TOLERANCE:g}"
    )


def _timed(
    parts: list[Any], patches: int, epochs: int, backbone: str
) -> tuple[float, dict[tuple[int, float], float]]:
    context = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    with tempfile.TemporaryDirectory(prefix="hcd-tuning-") as folder:
        for way, configurations, threads in parts:
            ours, theirs = context.Pipe()
            arguments = (way, configurations, threads, patches, epochs, backbone, folder, theirs)
            processes.append(context.Process(target=_serve, args=arguments, daemon=True))
            processes[-1].start()
            theirs.close()
            pipes.append(ours)
        for pipe in pipes:
            pipe.recv()  # ready
        began = time.perf_counter()
        for pipe in pipes:
            pipe.send("go")
        scores = [pipe.recv() for pipe in pipes]
        wall_s = time.perf_counter() - began
        for process in processes:
            process.join()
    return wall_s, {key: value for part in scores for key, value in part.items()}


def _serve(
    way: Any,
    configurations: list[tuple[int, float]],
    threads: int,
    patches: int,
    epochs: int,
    backbone: str,
    folder: str,
    pipe: Connection,
) -> None:
    from src.system.determinism import start_tensorflow

    environment = start_tensorflow(runtime(threads), seed=1)
    run_one = way(generate(patches, N_VAL), environment, Path(folder))
    pipe.send("ready")
    pipe.recv()
    pipe.send({each: run_one(_params(*each, epochs, backbone)) for each in configurations})


def _params(depth: int, rate: float, epochs: int, backbone: str) -> Params:
    from src.params import load_params
    from src.paths import ROOT

    both = {"epochs": epochs, "views": 2, "batch_size": 32, "schedule": {"name": "constant"}}
    values = {
        "model.backbone": backbone,
        "model.dropout": 0.0,
        "finetune.depth": depth,
        "finetune.learning_rate": rate,
        **{f"{phase}.{name}": v for phase in ("train", "finetune") for name, v in both.items()},
        **{f"{phase}.early_stopping.patience": epochs for phase in ("train", "finetune")},
    }
    return load_params(ROOT / "presets" / "sample.yaml").with_values(values)


def _ours(data: Data, environment: Any, folder: Path) -> RunOne:
    """As a worker of ``src.tune`` runs them."""
    from src import paths
    from src.system.log import get_logger
    from src.tuning.trial import Search, SearchData, run_trial, score

    paths.ACTIVATIONS = folder / "activations"
    search = Search(
        SearchData(data.train, data.val),
        environment,
        get_logger("benchmark"),
        depths=DEPTHS,
    )
    return lambda params: score(run_trial(params, search)[1], "val_auroc")


def _usual(data: Data, environment: Any, folder: Path) -> RunOne:  # noqa: ARG001
    """A network of its own for every trial, all of it run in every epoch."""
    return lambda params: _fit_usual(params, data)


def _fit_usual(params: Params, data: Data) -> float:
    """Best val AUROC."""
    import keras

    from src.model.classifier import FEATURE_SCALE, POOLED, build_classifier, unfreeze
    from src.tuning.trial import start_phase

    start_phase(params.train.seed)
    model = build_classifier(params.model)
    features = keras.Model(model.input, model.get_layer(POOLED).output)
    pooled = features.predict(data.train.pixels, batch_size=64, verbose=0).astype(np.float64)
    model.get_layer(FEATURE_SCALE).set_weights([pooled.mean(axis=0), pooled.var(axis=0)])
    backbone = params.model.backbone
    unfreeze(model, backbone=backbone, depth=0, batch_norm="frozen")
    _fit(model, params.train, data)
    unfreeze(model, backbone=backbone, depth=params.finetune.depth, batch_norm="frozen")
    return _fit(model, params.finetune, data)


def _fit(model: Any, section: Any, data: Data) -> float:
    import keras
    import tensorflow as tf

    from src.evaluation.metrics import auroc

    model.compile(
        optimizer=keras.optimizers.Adam(section.learning_rate),
        loss=keras.losses.BinaryCrossentropy(from_logits=True),
    )
    flip = tf.image.random_flip_left_right
    dataset = (
        tf.data.Dataset.from_tensor_slices((data.train.pixels, data.train.labels[:, None]))
        .shuffle(len(data.train), seed=section.seed)
        .map(lambda pixels, label: (flip(pixels), label), num_parallel_calls=tf.data.AUTOTUNE)
        .batch(section.batch_size)
        .prefetch(tf.data.AUTOTUNE)
    )
    best, weights = -math.inf, model.get_weights()
    for _ in range(section.epochs):
        model.fit(dataset, epochs=1, shuffle=False, verbose=0)
        logits = model.predict(data.val.pixels, batch_size=64, verbose=0)[:, 0].astype(np.float64)
        score = auroc(data.val.labels, logits)
        if score > best:
            best, weights = score, model.get_weights()
    model.set_weights(weights)
    return best


if __name__ == "__main__":
    run(main)
