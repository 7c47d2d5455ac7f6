"""Loading a classifier that is verified as ours, and running it over packed patches."""

from logging import Logger
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from src.data.batches import ordered_batches
from src.system.durable import verify_folder
from src.system.progress import progress

if TYPE_CHECKING:
    import keras

MODEL_FILE = "model.keras"


def load_classifier(folder: Path) -> "keras.Model":
    """Check ``folder`` against its manifest, then load its ``model.keras`` in safe mode."""
    import keras

    verify_folder(folder)
    return keras.saving.load_model(folder / MODEL_FILE, compile=False, safe_mode=True)


def predict_logits(
    model: "keras.Model",
    pixels: NDArray[np.uint8],
    rows: NDArray[np.int64],
    *,
    batch_size: int,
    log: Logger,
    task: str = "scored",
) -> NDArray[np.float64]:
    """The model's one output for ``pixels[rows]``, (n,) in the order of ``rows``.

    ``pixels`` (N, 96, 96, 3) uint8 may be memory-mapped: one batch is read at a time.
    """
    import tensorflow as tf

    @tf.function(reduce_retracing=True)
    def forward(batch: Any) -> Any:
        return model(batch, training=False)[:, 0]

    outputs = np.empty(len(rows))
    if not len(rows):
        return outputs
    with progress(task, len(rows), "patches", log) as advance:
        for batch in ordered_batches(len(rows), batch_size=min(batch_size, len(rows))):
            values = forward(tf.constant(pixels[rows[batch.positions]])).numpy()
            outputs[batch.positions[: batch.n_counted]] = values[: batch.n_counted]
            advance(batch.n_counted)
    return outputs


predict_probabilities = predict_logits
"""The same for ``models/final``, whose output is the calibrated probability of tumour."""
