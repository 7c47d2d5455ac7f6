"""``predict --input`` beside other ways to run a classifier: ``python -m benchmarks.inference``.

All take turns on the same patches in one process, so that a busy machine slows them alike; ratios
are the median over turns. The raw graph gets its batches from memory and keeps the answers there.
OpenVINO and ONNX Runtime take part where they are installed (``pip install openvino onnxruntime
onnx tf2onnx``; never dependencies).
"""

import importlib.util
import io
import logging
import tempfile
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.table import Table

from benchmarks.measured import runtime
from src.data.sources import PatchInput, open_input
from src.drawing.patches import draw_chunk
from src.drawing.plan import plan_subset
from src.params import load_params
from src.prediction import write_predictions
from src.scoring import Scorer, start

Pixels = NDArray[np.uint8]
Way = Callable[[Pixels], NDArray[np.float32]]

OURS, RAW, KERAS = "predict, npy", "raw TF graph", "model.predict"
# ours / this. Reading and writing may take 5 % of the bare graph's speed; Keras' own loop took
# nearly half of it where it was first measured.
TARGETS = {RAW: 0.95, KERAS: 1.5}
MAX_DIFFERENCE = 1e-4  # in probability
LOG = logging.getLogger("hcd.benchmark")


def main(
    patches: int = 512,
    batch: int = 32,
    repeats: int = 5,
    threads: int = 0,
    model: Annotated[Path | None, typer.Option(help="a .keras file that you trust")] = None,
    backbone: Annotated[str | None, typer.Option(help="of a random model")] = None,
    input_size: Annotated[int | None, typer.Option(help="of a random model")] = None,
) -> None:
    """Print patches/s of each way, ours against it, and the largest difference in probability."""
    start(runtime(threads))
    classifier = load(model) if model else random_classifier(backbone, input_size)
    pixels = draw(patches)
    with tempfile.TemporaryDirectory() as folder:
        inputs = write_inputs(Path(folder), pixels)
        scorer = Scorer(version_of(classifier))
        ways: dict[str, Way] = {
            f"predict, {name}": ours(scorer, open_input(path), Path(folder) / "out.csv", batch)
            for name, path in inputs.items()
        }
        ways |= {RAW: raw_graph(classifier, batch), KERAS: keras_predict(classifier, batch)}
        ways |= other_runtimes(classifier, Path(folder), batch, threads)
        turns, answers = measure(ways, pixels, repeats)
    Console(width=110).print(table_of(turns, answers, patches, batch))


def load(path: Path) -> Any:
    """A final model, in safe mode."""
    import keras

    return keras.saving.load_model(path, compile=False, safe_mode=True)


def random_classifier(backbone: str | None, input_size: int | None) -> Any:
    """The network of params.yaml with random weights, its head too: answers must differ."""
    from src.model.classifier import LOGIT, build_classifier
    from src.model.final import probability_classifier

    changes = {"backbone": backbone, "input_size": input_size}
    params = load_params().model
    params = params.model_copy(update={k: v for k, v in changes.items() if v is not None})
    model = build_classifier(params)
    head = model.get_layer(LOGIT)
    rng = np.random.default_rng(0)
    head.set_weights([rng.normal(0, 0.05, w.shape) for w in head.get_weights()])
    return probability_classifier(model, scale=1.0, shift=0.0)


def version_of(classifier: Any) -> Any:
    """What a scorer reads of a registered version."""
    return SimpleNamespace(
        name="benchmark",
        version=1,
        contract=None,
        model=classifier,
        operating_point={"threshold": 0.5},
    )


def draw(n: int) -> Pixels:
    """Generated patches (n, 96, 96, 3)."""
    plan = plan_subset(seed=1, subset="test", n_patches=n, n_slides=6)
    return np.concatenate([draw_chunk(chunk).pixels for chunk in plan.chunks()])


def write_inputs(folder: Path, pixels: Pixels) -> dict[str, Path]:
    """The patches as predict takes them: an array, a zip of TIFFs, a folder of PNGs."""
    paths = {
        "npy": folder / "p.npy",
        "zip of TIFF": folder / "p.zip",
        "folder of PNG": folder / "p",
    }
    np.save(paths["npy"], pixels)
    paths["folder of PNG"].mkdir()
    with zipfile.ZipFile(paths["zip of TIFF"], "w", zipfile.ZIP_DEFLATED) as archive:
        for i, patch in enumerate(pixels):
            image, tiff = Image.fromarray(patch), io.BytesIO()
            image.save(tiff, "TIFF")
            archive.writestr(f"{i:06d}.tif", tiff.getvalue())
            image.save(paths["folder of PNG"] / f"{i:06d}.png")
    return paths


def ours(scorer: Scorer, source: PatchInput, output: Path, batch: int) -> Way:
    """All that the command does once the champion is loaded: read, decode, score, write."""

    def way(_: Pixels) -> NDArray[np.float32]:
        write_predictions(source, scorer, output, batch_size=batch, skip_bad=False, log=LOG)
        return np.loadtxt(output, np.float32, delimiter=",", skiprows=1, usecols=1)

    return way


def raw_graph(classifier: Any, batch: int) -> Way:
    """A graph traced for this one batch size."""
    import tensorflow as tf

    signature = [tf.TensorSpec([batch, 96, 96, 3], tf.uint8)]
    graph = tf.function(lambda x: classifier(x, training=False)[:, 0], input_signature=signature)
    return in_batches(lambda x: graph(tf.constant(x)).numpy(), batch)


def keras_predict(classifier: Any, batch: int) -> Way:
    """``model.predict`` as tutorials call it."""
    return lambda pixels: classifier.predict(pixels, batch_size=batch, verbose=0)[:, 0]


def in_batches(forward: Way, batch: int) -> Way:
    """``forward`` over whole batches; the last one is filled up from the start."""

    def way(pixels: Pixels) -> NDArray[np.float32]:
        rows = np.arange(-(-len(pixels) // batch) * batch) % len(pixels)
        parts = [forward(pixels[part]) for part in rows.reshape(-1, batch)]
        return np.concatenate(parts)[: len(pixels)]

    return way


def other_runtimes(classifier: Any, folder: Path, batch: int, threads: int) -> dict[str, Way]:
    """OpenVINO and ONNX Runtime, each from the model's own export, where installed."""
    ways: dict[str, Way] = {}
    if importlib.util.find_spec("openvino"):
        ways["OpenVINO"] = in_batches(openvino_forward(classifier, folder, threads), batch)
    if importlib.util.find_spec("onnxruntime") and importlib.util.find_spec("tf2onnx"):
        ways["ONNX Runtime"] = in_batches(onnx_forward(classifier, folder, threads), batch)
    return ways


def openvino_forward(classifier: Any, folder: Path, threads: int) -> Way:
    """Through a SavedModel; float32, as the others."""
    import openvino

    classifier.export(folder / "saved", verbose=False)
    options = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "THROUGHPUT"}
    if threads:
        options["INFERENCE_NUM_THREADS"] = str(threads)
    model = openvino.Core().compile_model(openvino.convert_model(folder / "saved"), "CPU", options)
    return lambda x: model(x)[0][:, 0]


def onnx_forward(classifier: Any, folder: Path, threads: int) -> Way:
    """Through Keras' own export, which needs tf2onnx."""
    import onnxruntime

    classifier.export(folder / "model.onnx", format="onnx", verbose=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(folder / "model.onnx", options)
    name = session.get_inputs()[0].name
    return lambda x: session.run(None, {name: x})[0][:, 0]


@dataclass(frozen=True)
class Turn:
    """Time of a pass over all patches; ``cpu_s`` of all threads: others' work hardly moves it."""

    wall_s: float
    cpu_s: float


def measure(
    ways: dict[str, Way], pixels: Pixels, repeats: int
) -> tuple[dict[str, list[Turn]], dict[str, NDArray[np.float32]]]:
    """Every turn, and the answers; a first turn, untimed, traces and warms up."""
    answers = {name: way(pixels) for name, way in ways.items()}
    turns: dict[str, list[Turn]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            wall, cpu = time.perf_counter(), time.process_time()
            way(pixels)
            turns[name].append(Turn(time.perf_counter() - wall, time.process_time() - cpu))
    return turns, answers


def table_of(
    turns: dict[str, list[Turn]],
    answers: dict[str, NDArray[np.float32]],
    patches: int,
    batch: int,
) -> Table:
    """One row a way; ours is predict from an array."""
    table = Table(title=f"{patches} patches in batches of {batch}", title_justify="left")
    table.add_column("")
    headings = ("patches/s", "CPU ms a patch", "ours / this (target)", "by CPU time", "difference")
    for heading in headings:
        table.add_column(heading, justify="right")
    for name, taken in turns.items():
        pairs = list(zip(taken, turns[OURS], strict=True))
        target = f" ({TARGETS[name]:g})" if name in TARGETS else ""
        table.add_row(
            name,
            f"{patches / median(turn.wall_s for turn in taken):,.0f}",
            f"{1e3 * median(turn.cpu_s for turn in taken) / patches:.2f}",
            f"{median(theirs.wall_s / mine.wall_s for theirs, mine in pairs):.2f}{target}",
            f"{median(theirs.cpu_s / mine.cpu_s for theirs, mine in pairs):.2f}",
            f"{np.abs(answers[name] - answers[RAW]).max():.1e}",
        )
    table.caption = (
        f"largest difference in probability from the raw graph: {MAX_DIFFERENCE:g} allowed"
    )
    return table


if __name__ == "__main__":
    typer.run(main)
