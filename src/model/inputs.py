"""What enters the tail: activations of the frozen trunk for a batch of patches and views.

Whether they come from the cache or are computed changes no result: activations are rounded to the
cache's type either way, and the trunk gives a patch the same bits in whatever batch it comes (a
test holds it on CPU).
"""

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from logging import Logger
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

from src.data.batches import VIEW_BLOCK, Batch, apply_view, apply_views
from src.data.dataset import LabelledPatches
from src.model.activations import as_stored
from src.model.cache import Entry
from src.model.cache_plan import CachePlan
from src.model.shared_pass import BlockForward, SharedPass
from src.system.progress import progress

if TYPE_CHECKING:
    import keras

Forward = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
"""uint8 patches (k, 96, 96, 3) → float32 activations (k, …) of the frozen trunk."""

_ROWS_STEP = 16  # computed rows are filled up to a multiple, so that few shapes are compiled


class Inputs(Protocol):
    """One split as the tail sees it."""

    def prepare(self, views: NDArray[np.int64]) -> None:
        """Make ready for a pass in which patch i is met in view ``views[i]`` (n,)."""

    def __call__(self, batch: Batch) -> Any:
        """What enters the tail, a tensor (batch, …)."""


class PixelInputs:
    """uint8 pixels in their views, where nothing is frozen or pixels are augmented."""

    def __init__(
        self, patches: LabelledPatches, transform: Callable[[Any], Any] | None = None
    ) -> None:
        self._patches = patches
        self._transform = transform

    def prepare(self, views: NDArray[np.int64]) -> None:
        """Nothing to make ready."""

    def __call__(self, batch: Batch) -> Any:
        import tensorflow as tf

        pixels = self._patches.take(batch.positions)
        tensor = tf.constant(apply_views(pixels, batch.views))
        return tensor if self._transform is None else self._transform(tensor)


class CachedInputs:
    """Activations from the cache; those the plan doesn't keep are computed for each batch.

    ``entry`` is None where nothing is kept; ``shared`` keeps those of other boundaries on the way.
    """

    def __init__(
        self,
        patches: LabelledPatches,
        forward: Forward,
        *,
        entry: Entry | None,
        plan: CachePlan,
        shape: tuple[int, ...],
        dtype: DTypeLike,
        log: Logger,
        shared: SharedPass | None = None,
    ) -> None:
        self._patches = patches
        self._forward = forward
        self._entry = entry
        self._plan = plan
        self._shape = shape
        self._dtype = np.dtype(dtype)
        self._log = log
        self._shared = shared

    def prepare(self, views: NDArray[np.int64]) -> None:
        """Compute the kept blocks of this pass that are not on disk yet."""
        entry = self._entry
        if entry is None:
            return
        wanted = self._wanted(views)
        n_missing = sum(len(entry.missing(v, blocks)) for v, blocks in wanted.items()) * VIEW_BLOCK
        entry.mark_used()
        if not n_missing:
            return
        task = f"{self._patches.split}: frozen layers computed for"
        n_patches = min(n_missing, len(self._patches))
        with (
            progress(task, n_patches, "patches", self._log) as advance,
            self._shared.computing(wanted) if self._shared else nullcontext(self._alone) as forward,
        ):
            entry.fill(wanted, partial(self._compute_block, forward), advance=advance)

    def __call__(self, batch: Batch) -> Any:
        import tensorflow as tf

        values = np.empty((len(batch.positions), *self._shape), self._dtype)
        computed = np.ones(len(values), np.bool_)
        if self._entry is not None:
            for view in np.unique(batch.views).tolist():
                chosen = np.flatnonzero(batch.views == view)
                kept = chosen[self._entry.has(view, batch.positions[chosen])]
                if len(kept):
                    values[kept] = self._entry.read(view, batch.positions[kept])
                    computed[kept] = False
        if computed.any():
            values[computed] = self._compute(batch.positions[computed], batch.views[computed])
        return tf.cast(tf.constant(values), tf.float32)

    def _wanted(self, views: NDArray[np.int64]) -> dict[int, list[int]]:
        """View → kept blocks that are met in it."""
        kept = views[: self._plan.n_kept * VIEW_BLOCK]
        blocks = np.arange(len(kept)) // VIEW_BLOCK
        return {int(v): np.unique(blocks[kept == v]).tolist() for v in np.unique(kept)}

    def _compute_block(self, forward: BlockForward, view: int, block: int) -> NDArray[np.float32]:
        first = block * VIEW_BLOCK
        positions = np.arange(first, min(first + VIEW_BLOCK, len(self._patches)))
        pixels = apply_view(self._patches.take(positions), view)
        return forward(view, block, _filled_up(pixels, VIEW_BLOCK), len(positions))

    def _alone(
        self,
        view: int,  # noqa: ARG002
        block: int,  # noqa: ARG002
        pixels: NDArray[np.uint8],
        n: int,
    ) -> NDArray[np.float32]:
        return self._forward(pixels)[:n]

    def _compute(
        self, positions: NDArray[np.int64], views: NDArray[np.int64]
    ) -> NDArray[np.generic]:
        pixels = _filled_up(apply_views(self._patches.take(positions), views), _ROWS_STEP)
        return as_stored(self._forward(pixels)[: len(positions)], self._dtype)


def trunk_forward(trunk: "keras.Model") -> Forward:
    """The trunk in inference mode, compiled."""
    import tensorflow as tf

    @tf.function(reduce_retracing=True, autograph=False)
    def forward(pixels: Any) -> Any:
        return trunk(pixels, training=False)

    return lambda pixels: forward(tf.constant(pixels)).numpy()


def _filled_up(pixels: NDArray[np.uint8], multiple: int) -> NDArray[np.uint8]:
    """With the first patch repeated at the end, up to a multiple of ``multiple``."""
    lacking = -len(pixels) % multiple
    if not lacking:
        return pixels
    return np.concatenate([pixels, np.repeat(pixels[:1], lacking, axis=0)])
