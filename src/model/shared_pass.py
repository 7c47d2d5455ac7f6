"""One pass of patches through the frozen layers fills the cache at several boundaries.

A search tries several depths, each with a boundary of its own. A pass for one of them computes the
activations at those below it on its way, and those above it with a little more work. They are the
bits that a pass for such a boundary alone gives (a test holds it on CPU).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from src.data.labelled import LabelledPatches
from src.model.boundary import Boundary
from src.model.cache import ActivationCache, Entry
from src.model.folding import folded

if TYPE_CHECKING:
    import keras

BlockForward = Callable[[int, int, NDArray[np.uint8], int], NDArray[np.float32]]
"""View, block, its uint8 patches, and how many of them count → their activations."""
SharedForward = Callable[[NDArray[np.uint8]], list[NDArray[np.float32]]]
"""uint8 patches → their activations at each boundary."""

MOST_BESIDE_BYTES = 1 << 19
"""Disk that a patch may take at the other boundaries in one view: to write half a megabyte costs
about a tenth of computing it."""


class SharedForwards:
    """The frozen layers with more than one output, made once for each choice of outputs."""

    def __init__(self, own: "keras.Model") -> None:
        self._own = own
        self._made: dict[tuple[int, ...], SharedForward] = {}

    def __call__(self, others: "Sequence[keras.Model]") -> SharedForward:
        """In inference mode, compiled; the first output is that of the own boundary."""
        key = tuple(map(id, others))
        if key not in self._made:
            self._made[key] = self._make(others)
        return self._made[key]

    def _make(self, others: "Sequence[keras.Model]") -> SharedForward:
        import keras
        import tensorflow as tf

        outputs = [self._own.output, *(other.output for other in others)]
        layers = folded(keras.Model(self._own.input, outputs))

        @tf.function(reduce_retracing=True, autograph=False)
        def forward(pixels: Any) -> Any:
            return layers(pixels, training=False)

        return lambda pixels: [output.numpy() for output in forward(tf.constant(pixels))]


class SharedPass:
    """Fills the entries of ``others`` in ``cache`` while the trunk's own is filled.

    Of the others, the first ones that fit :data:`MOST_BESIDE_BYTES`, where ``cache`` has room to
    spare for all of ``patches``.
    """

    def __init__(
        self,
        forwards: SharedForwards,
        others: Sequence[Boundary],
        patches: LabelledPatches,
        *,
        views: int,
        passes: int,
        cache: ActivationCache,
    ) -> None:
        self._forwards = forwards
        self._others = others
        self._patches = patches
        self._met = {"views": views, "passes": passes}
        self._cache = cache
        self._entries: list[tuple[Boundary, Entry]] | None = None

    @contextmanager
    def computing(self, wanted: Mapping[int, list[int]]) -> Iterator[BlockForward | None]:
        """Yields what computes the ``wanted`` blocks of each view; None where no other entry lacks
        any of them.
        """
        if self._entries is None:
            self._entries = self._opened()
        lacking = [
            (boundary, entry)
            for boundary, entry in self._entries
            if any(entry.missing(view, blocks) for view, blocks in wanted.items())
        ]
        if not lacking:
            yield None
            return
        forward = self._forwards([boundary.model for boundary, _ in lacking])
        with ExitStack() as stack:
            accepts = [stack.enter_context(entry.accepting()) for _, entry in lacking]

            def compute(
                view: int, block: int, pixels: NDArray[np.uint8], n: int
            ) -> NDArray[np.float32]:
                own, *others = forward(pixels)
                for accept, values in zip(accepts, others, strict=True):
                    accept(view, block, values[:n])
                return own[:n]

            yield compute

    def _opened(self) -> list[tuple[Boundary, Entry]]:
        found = []
        left = MOST_BESIDE_BYTES
        for boundary in self._others:
            left -= boundary.patch_bytes
            if left < 0:
                break
            spare = self._cache.spare_bytes(boundary.identity_of(self._patches))
            plan = boundary.plan(self._patches, **self._met, max_bytes=spare)
            if plan.n_kept == plan.n_blocks:
                entry = boundary.entry(self._cache, self._patches, plan)
                if entry is not None:
                    found.append((boundary, entry))
        return found
