"""Which holdout patches to look at, and their pictures beside what speaks for the decision."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pandas as pd
    from PIL.Image import Image

SETS = {
    "missed": "Missed tumour, most confident first",
    "false_alarm": "False alarms, most confident first",
    "near": "Nearest to the threshold",
    "loss": "Highest loss: mistakes, or labels to doubt",
    "right_tumour": "Tumour found, most confident first",
    "right_normal": "Normal cleared, most confident first",
}
_SHOWN_PX = 192  # a patch of 96 px twice as large
_CENTRE = (1 / 3, 2 / 3)  # of the side: the 32 px that the label speaks of
_MAP_OPACITY = 0.6


def choose_patches(rows: "pd.DataFrame", *, threshold: float, per_set: int) -> "pd.DataFrame":
    """Rows of the holdout table for each of ``SETS``, with columns set and rank, the worst first.

    ``rows`` has id, label, probability. A patch may stand in several sets; equal probabilities are
    ordered by id.
    """
    import pandas as pd

    ordered = rows.sort_values("id")
    probability, label = ordered["probability"], ordered["label"].astype(bool)
    called = probability >= threshold
    worst_first: dict[str, tuple[Any, Any]] = {
        "missed": (label & ~called, probability),
        "false_alarm": (~label & called, -probability),
        "near": (label | ~label, (probability - threshold).abs()),
        "loss": (label | ~label, probability.where(label, 1 - probability)),
        "right_tumour": (label & called, -probability),
        "right_normal": (~label & ~called, probability),
    }
    chosen = [
        ordered.assign(order=order)[of_set]
        .sort_values("order", kind="stable")
        .head(per_set)
        .assign(set=name, rank=lambda found: range(1, len(found) + 1))
        for name, (of_set, order) in worst_first.items()
    ]
    table: pd.DataFrame = pd.concat(chosen, ignore_index=True)
    return table.drop(columns="order")


def explained_picture(patch: NDArray[np.uint8], evidence: NDArray[np.float64]) -> "Image":
    """384 × 192 px: the patch, and the patch under its map of evidence; centre squares drawn.

    ``patch`` (96, 96, 3) uint8, ``evidence`` (96, 96) in 0 … 1.
    """
    from PIL import Image

    plain = np.asarray(_enlarged(patch), dtype=np.float64)
    evidence_shown = np.asarray(_enlarged(np.round(255 * evidence).astype(np.uint8))) / 255
    opacity = _MAP_OPACITY * evidence_shown[..., None]
    grey = plain.mean(axis=2, keepdims=True) * np.ones(3)
    under_map = (1 - opacity) * grey + opacity * _colours()(evidence_shown)
    pair = np.concatenate([plain, under_map], axis=1).round().astype(np.uint8)
    picture = Image.fromarray(pair)
    for left in (0, _SHOWN_PX):
        _draw_centre(picture, left)
    return picture


def _enlarged(values: NDArray[np.uint8]) -> "Image":
    from PIL import Image

    return Image.fromarray(values).resize((_SHOWN_PX, _SHOWN_PX), Image.Resampling.BICUBIC)


def _draw_centre(picture: "Image", left: int) -> None:
    from PIL import ImageDraw

    low, high = (round(_SHOWN_PX * edge) for edge in _CENTRE)
    draw = ImageDraw.Draw(picture)
    # black beside white is seen on any tissue
    draw.rectangle((left + low - 1, low - 1, left + high, high), outline="black")
    draw.rectangle((left + low, low, left + high - 1, high - 1), outline="white")


def _colours() -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    """0 … 1 → RGB of 0 … 255, violet to yellow, told apart by colour-blind readers."""
    from matplotlib import colormaps

    colours = colormaps["plasma"]
    return lambda values: 255.0 * np.asarray(colours(values))[..., :3]
