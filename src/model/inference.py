"""Saving a classifier, loading one that is verified as ours, and running it over packed patches.

Test-time augmentation is the mean logit over the 8 flips and rotations of the square. Logits are
averaged, not probabilities: the mean can then be calibrated as a single logit is, and what is
served stays logit → scale and shift → sigmoid.
"""

from __future__ import annotations

import json
import re
import shutil
import zipfile
from collections.abc import Callable
from logging import Logger
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from src.data.batches import N_VIEWS, ordered_batches, view_steps
from src.data.dataset import LabelledPatches
from src.system.durable import verify_folder
from src.system.progress import progress

MODEL_FILE = "model.keras"
_CONFIG, _METADATA = "config.json", "metadata.json"  # of the zip that a .keras file is
_NO_DATE = (1980, 1, 1, 0, 0, 0)  # the earliest a zip can hold
VIEWS_LAYER = "views"
"""Of a model that looks at each patch in all 8 views: where they become one batch."""

Forward = Callable[[NDArray[np.uint8]], NDArray[np.float32]]


def save_model(model: keras.Model, path: Path) -> None:
    """Save as ``.keras``, with the same bytes for the same model.

    Keras' date is left out, and its numbers of shared objects, which are memory addresses, become
    1, 2, … in order.
    """
    dated = path.with_name(f"dated-{path.name}")
    model.save(dated)
    with zipfile.ZipFile(dated) as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            entry = zipfile.ZipInfo(name, date_time=_NO_DATE)
            if name == _METADATA:
                metadata = {**json.loads(source.read(name)), "date_saved": ""}
                target.writestr(entry, json.dumps(metadata))
                continue
            if name == _CONFIG:
                target.writestr(entry, _renumbered(source.read(name).decode()))
                continue
            with source.open(name) as data, target.open(entry, "w", force_zip64=True) as copy:
                shutil.copyfileobj(data, copy, 1 << 20)
    dated.unlink()


def load_classifier(folder: Path) -> keras.Model:
    """Check ``folder`` against its manifest, then load its ``model.keras`` in safe mode."""
    verify_folder(folder)
    return keras.saving.load_model(folder / MODEL_FILE, compile=False, safe_mode=True)


def forward_pass(model: keras.Model) -> Forward:
    """The model as a TensorFlow graph that is traced once and then used for any number of patches.

    The one way to score: evaluation, registration, prediction and the server all run this graph.

    uint8 (n, 96, 96, 3) → the model's outputs, (n, k) float32. The weights of this moment become
    constants of the graph, so that TensorFlow folds BatchNorm and bias into the convolutions: about
    a fifth faster on a CPU, and the same to 1e-6. A model that looks at 8 views gets an eighth of
    the patches at a time: memory is that of n images. Safe to call from several threads.
    """
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    patches = tf.TensorSpec([None, *model.input.shape[1:]], tf.uint8)

    @tf.function(input_signature=[patches], autograph=False)
    def output(batch: Any) -> Any:
        return model(batch, training=False)

    graph = convert_variables_to_constants_v2(output.get_concrete_function())
    n_parts = N_VIEWS if any(layer.name == VIEWS_LAYER for layer in model.layers) else 1

    def forward(batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        parts = np.array_split(batch, min(n_parts, len(batch)))
        return np.concatenate([graph(tf.constant(part))[0].numpy() for part in parts])

    return forward


def predict_outputs(
    model: keras.Model,
    pixels: NDArray[np.uint8],
    rows: NDArray[np.int64],
    *,
    batch_size: int,
    log: Logger,
    task: str = "scored",
) -> NDArray[np.float64]:
    """The model's outputs for ``pixels[rows]``, in the order of ``rows``: (n, k), or (n,) of one.

    A logit of ``models/finetuned``, the calibrated probability of tumour of ``models/final``.

    ``pixels`` (N, 96, 96, 3) uint8 may be memory-mapped: one batch is read at a time.
    """
    if not len(rows):
        return np.empty(0)
    outputs = np.empty((len(rows), model.output.shape[-1]))
    forward = forward_pass(model)
    with progress(task, len(rows), "patches", log) as advance:
        for batch in ordered_batches(len(rows), batch_size=min(batch_size, len(rows))):
            values = forward(pixels[rows[batch.positions]])
            outputs[batch.positions[: batch.n_counted]] = values[: batch.n_counted]
            advance(batch.n_counted)
    return outputs[:, 0] if outputs.shape[1] == 1 else outputs


def logits_by_view(
    model: keras.Model,
    patches: LabelledPatches,
    *,
    all_views: bool,
    batch_size: int,
    log: Logger,
) -> NDArray[np.float64]:
    """(views, n) logits of a split: of its 8 views, or of the patch as it is alone.

    By the graph that is served, up to the mean over the views.
    """
    logits = predict_outputs(
        view_logits(model) if all_views else model,
        patches.pixels,
        patches.rows,
        batch_size=batch_size,
        log=log,
        task=f"{patches.split}: scored",
    )
    return np.atleast_2d(logits.T)


def view_logits(model: keras.Model) -> keras.Model:
    """The same input, (n, 96, 96, 3) uint8, to the logits (n, 8) of its views.

    Column 0 is the patch as it is. Of stock operations, so that it is saved and served like any
    model. All views go through ``model`` as one batch of 8 n.
    """
    ops = keras.ops
    patches = keras.Input(model.input.shape[1:], dtype="uint8", name="patch")
    turned = ops.concatenate([_viewed(patches, view) for view in range(N_VIEWS)], axis=0)
    turned = keras.layers.Identity(dtype="uint8", name=VIEWS_LAYER)(turned)
    return keras.Model(patches, ops.transpose(ops.reshape(model(turned), (N_VIEWS, -1))))


def averaged_over_views(model: keras.Model) -> keras.Model:
    """The same input to the mean logit (n, 1) over its 8 views: the graph of :func:`view_logits`
    and a mean."""
    by_view = view_logits(model)
    mean = keras.ops.mean(by_view.output, axis=-1, keepdims=True)
    return keras.Model(by_view.input, mean, name="averaged_classifier")


def _viewed(patches: Any, view: int) -> Any:
    transpose, flip_rows, flip_columns = view_steps(view)
    if transpose:
        patches = keras.ops.transpose(patches, (0, 2, 1, 3))
    flipped = [axis for axis, is_flipped in ((1, flip_rows), (2, flip_columns)) if is_flipped]
    return keras.ops.flip(patches, axis=flipped) if flipped else patches


def _renumbered(config: str) -> str:
    numbers: dict[str, int] = {}
    return re.sub(
        r'(?<="shared_object_id": )\d+',
        lambda found: str(numbers.setdefault(found[0], len(numbers) + 1)),
        config,
    )
