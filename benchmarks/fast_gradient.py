"""Training steps with stock and fast gradients, each without and with XLA, side by side.

Each cell is patches a second of processor time, as if all cores were free (the figure to compare:
other work beside it hardly moves it), and in brackets patches a second of the clock.

``python -m benchmarks.fast_gradient`` (all cells, about 20 minutes on two cores);
``--depth``, ``--size`` and ``--batch-size`` choose among them, ``--no-onednn`` runs TensorFlow as
it runs by default on processors without AVX512-VNNI. Activations are random: only time is measured.
"""

import os
import statistics
import time
from collections.abc import Callable
from itertools import product
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.measured import runtime
from src.model.classifier import BatchNormMode, cut, unfreeze
from src.model.fast_gradient import fast_input_gradients
from src.params import ModelParams
from src.system.determinism import start_tensorflow

BACKBONE: Literal["resnet50"] = "resnet50"
VARIANTS = {
    "stock": (False, False),
    "stock, XLA": (False, True),
    "fast": (True, False),
    "fast, XLA": (True, True),
}
Step = Callable[[], Any]


def main(
    depth: Annotated[list[int] | None, typer.Option(help="residual blocks trained")] = None,
    size: Annotated[list[int] | None, typer.Option(help="px the network sees, 96 or less")] = None,
    batch_size: int = 32,
    batch_norm: str = "frozen,train",
    onednn: bool = True,
    xla: bool = True,
    repeats: int = 5,
) -> None:
    """Print patches/s of a full training step, medians of alternated repeats."""
    os.environ["TF_ENABLE_ONEDNN_OPTS"] = str(int(onednn))
    start_tensorflow(runtime(), seed=0)
    cores = len(os.sched_getaffinity(0))
    variants = {name: flags for name, flags in VARIANTS.items() if xla or not flags[1]}
    kernels = "on" if onednn else "off"
    title = f"patches/s of processor time (clock), batch {batch_size}, oneDNN {kernels}"
    table = Table("px", "depth", "BatchNorm", *variants, title=title)
    console = Console(width=100)
    for px in size or [96, 64]:
        model = _classifier(px)
        for blocks, mode in product(depth or [1, 3, 9, 16], batch_norm.split(",")):
            tail, inputs = _tail(model, depth=blocks, batch_norm=mode, batch_size=batch_size)
            steps = {
                name: _step(tail, inputs, fast=fast, jit_compile=jit)
                for name, (fast, jit) in variants.items()
            }
            seconds = _alternated(steps, repeats)
            rates = [
                f"{cores * batch_size / cpu:.1f} ({batch_size / wall:.1f})"
                for cpu, wall in seconds.values()
            ]
            table.add_row(str(px), str(blocks), mode, *rates)
            print(px, blocks, mode, *rates, sep="  ", flush=True)
    console.print(table)


def _classifier(px: int) -> Any:
    from src.model.classifier import build_classifier

    return build_classifier(
        ModelParams(
            backbone=BACKBONE,
            weights="none",
            input_size=px,
            centre_crop=px if px < 96 else None,
            pooling="avg",
            dropout=0.2,
        )
    )


def _tail(model: Any, *, depth: int, batch_norm: BatchNormMode, batch_size: int) -> tuple[Any, Any]:
    """The tail and a batch of what enters it."""
    import tensorflow as tf

    unfreeze(model, backbone=BACKBONE, depth=depth, batch_norm=batch_norm)
    _, tail = cut(model, backbone=BACKBONE, depth=depth)
    shape = [batch_size, *tail.input_shape[1:]]
    if tail is model:
        return tail, tf.random.uniform(shape, 0, 256, tf.int32)
    return tail, tf.nn.relu(tf.random.normal(shape))


def _step(tail: Any, inputs: Any, *, fast: bool, jit_compile: bool) -> Step:
    """One compiled training step, already traced."""
    import keras
    import tensorflow as tf

    variables = tail.trainable_variables
    optimizer = keras.optimizers.Adam(1e-6)
    optimizer.build(variables)
    labels = tf.cast(tf.range(inputs.shape[0]) % 2, tf.float32)
    patches = tf.cast(inputs, tail.input.dtype)

    @tf.function(jit_compile=jit_compile)
    def train(x: Any) -> Any:
        with tf.GradientTape() as tape:
            logits = tail(x, training=True)[:, 0]
            losses = tf.nn.sigmoid_cross_entropy_with_logits(labels=labels, logits=logits)
            loss = tf.reduce_mean(losses)
        optimizer.apply(tape.gradient(loss, variables), variables)
        return loss

    if fast:
        with fast_input_gradients(tail):
            train(patches)
    else:
        train(patches)
    return lambda: train(patches).numpy()


def _alternated(steps: dict[str, Step], repeats: int) -> dict[str, tuple[float, float]]:
    """Median processor seconds and median clock seconds of each, run in turn."""
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    for _ in range(repeats):
        for name, step in steps.items():
            cpu, wall = time.process_time(), time.perf_counter()
            step()
            seconds[name].append((time.process_time() - cpu, time.perf_counter() - wall))
    return {
        name: tuple(map(statistics.median, zip(*s, strict=True))) for name, s in seconds.items()
    }


if __name__ == "__main__":
    typer.run(main)
