"""What ``mlflow models serve`` runs: a registered version that takes patches or coded images.

Every version's ``MLmodel`` names this module as the loader of its ``python_function``. It is
imported from the folder where the server starts, the project's root: nothing that lies with a model
is executed, and nothing of it is loaded before it is verified.
"""

import base64
import binascii
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from src.data.archives import MAX_IMAGE_BYTES, BadPatchError
from src.data.images import decode_image
from src.params import load_params
from src.patch import SHAPE
from src.scoring import ScoreError, Scorer, start
from src.system.errors import ProjectError

MAX_PATCHES = 1024
IMAGE_KEY, PATCH_KEY = "image", "patch"

_EXPECTED = (
    f"expected pixels (n, 96, 96, 3) of whole numbers 0 to 255, as 'inputs' or under '{PATCH_KEY}',"
    f" or base64 of TIFF or PNG files, as a list or under '{IMAGE_KEY}'"
)
# four characters for three bytes
_MAX_BASE64 = -(-MAX_IMAGE_BYTES // 3) * 4


class RequestError(ProjectError):
    """A request can't be answered; it names what came and what is allowed."""


class ServedClassifier:
    """What MLflow asks for predictions."""

    def __init__(self, scorer: Scorer, *, batch_size: int) -> None:
        self._scorer = scorer
        self._batch_size = batch_size

    def predict(self, data: Any) -> list[dict[str, Any]]:
        """One ``{"probability": …, "decision": …}`` a patch, in order.

        Raises
        ------
        MlflowException
            Status 400: the request isn't one of the two kinds, or an image in it is unreadable.
            Status 500: the model answers with what is no number.
        """
        from src.tracking.served import bad_request, broken_model

        try:
            pixels = patches_of(data)
            probabilities = self._probabilities(pixels)
        except RequestError as error:
            raise bad_request(str(error)) from error
        except ScoreError as error:
            raise broken_model(str(error)) from error
        return [
            {"probability": float(probability), "decision": decision}
            for probability, decision in zip(
                probabilities, self._scorer.decisions(probabilities), strict=True
            )
        ]

    def _probabilities(self, pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
        parts = (
            self._scorer.probabilities(pixels[first : first + self._batch_size])
            for first in range(0, len(pixels), self._batch_size)
        )
        return np.concatenate(list(parts))


def _load_pyfunc(path: str) -> ServedClassifier:
    """MLflow's entry point: verify the version that lies in ``path``, then load it."""
    from src.tracking.served import load_served

    runtime = load_params().runtime
    start(runtime)
    scorer = Scorer(load_served(Path(path)))
    return ServedClassifier(scorer, batch_size=runtime.inference_batch_size)


def patches_of(data: Any) -> NDArray[np.uint8]:
    """The patches (n, 96, 96, 3) of a request as MLflow hands it over.

    ``data`` is an array or list (``inputs``, ``instances``), or a mapping or data frame with the
    one column ``patch`` or ``image``.

    Raises
    ------
    RequestError
        It is anything else, there are none or over 1,024, or one isn't a patch.
    """
    values = _only_column(data)
    if isinstance(values, np.ndarray) and values.dtype.kind not in "OUS":
        return _checked_pixels(values)
    items = list(np.atleast_1d(values)) if isinstance(values, np.ndarray) else values
    if isinstance(items, str):
        items = [items]
    if not isinstance(items, list):
        raise RequestError(f"got {type(items).__name__}; {_EXPECTED}")
    _check_count(len(items))
    if all(isinstance(item, str) for item in items):
        return np.stack([_decoded(item, i) for i, item in enumerate(items)])
    if any(isinstance(item, str) for item in items):
        raise RequestError(f"pixels and base64 in one list; {_EXPECTED}")
    return _checked_pixels(_as_array(items))


def _only_column(data: Any) -> Any:
    if not hasattr(data, "keys"):  # neither a mapping nor a data frame
        return data
    columns = list(data.keys())
    if len(columns) != 1 or columns[0] not in (IMAGE_KEY, PATCH_KEY):
        raise RequestError(f"got columns {', '.join(map(str, columns)) or 'none'}; {_EXPECTED}")
    column = data[columns[0]]
    return (
        column.tolist()
        if hasattr(column, "tolist") and not isinstance(column, np.ndarray)
        else column
    )


def _as_array(items: Sequence[Any]) -> NDArray[Any]:
    try:
        return np.array(items)
    except ValueError as error:  # rows of different lengths
        raise RequestError(f"patches of different shapes; {_EXPECTED}") from error


def _checked_pixels(values: NDArray[Any]) -> NDArray[np.uint8]:
    if values.ndim != 4 or values.shape[1:] != SHAPE:
        raise RequestError(f"pixels of shape {values.shape}; {_EXPECTED}")
    _check_count(len(values))
    # scaled pixels would be answered, and wrongly
    if values.dtype.kind not in "iu":
        raise RequestError(f"pixels are {values.dtype}; {_EXPECTED}")
    if values.min() < 0 or values.max() > 255:
        raise RequestError(f"pixels from {values.min()} to {values.max()}; {_EXPECTED}")
    return values.astype(np.uint8)


def _check_count(n: int) -> None:
    if not 0 < n <= MAX_PATCHES:
        raise RequestError(f"{n:,} patches in one request, expected 1 to {MAX_PATCHES:,}")


def _decoded(text: str, position: int) -> NDArray[np.uint8]:
    if len(text) > _MAX_BASE64:
        raise RequestError(f"image {position}: over {MAX_IMAGE_BYTES:,} bytes")
    try:
        return decode_image(base64.b64decode(text, validate=True))
    except (binascii.Error, ValueError) as error:
        raise RequestError(f"image {position}: not base64 ({error})") from error
    except BadPatchError as error:
        raise RequestError(f"image {position}: {error}; {_EXPECTED}") from error
