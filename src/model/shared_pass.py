"""One pass of patches through the frozen layers fills the cache at several boundaries.

A search tries several depths, each with a boundary of its own. One pass gives the activations at
all of them: the bits that a pass for each alone gives (a test holds it on CPU).
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

import numpy as np
from numpy.typing import NDArray

from src.data.dataset import LabelledPatches
from src.model.cache import ActivationCache, Entry
from src.model.frozen import FrozenBackbone

BlockForward = Callable[[int, int, NDArray[np.uint8], int], NDArray[np.float32]]
"""View, block, its uint8 patches, and how many of them count → their activations."""

MOST_BESIDE_BYTES = 1 << 19
"""Disk that a patch may take at the other boundaries in one view. So much makes a pass longer by a
tenth to a half (``benchmarks/shared_pass.py``), and saves most of one for every depth tried later.
"""


class SharedPass:
    """Fills the entries of other depths in ``cache`` while that of ``depth`` is filled.

    Of the others, the first ones that fit :data:`MOST_BESIDE_BYTES`, where ``cache`` has room to
    spare for all of ``patches``.
    """

    def __init__(
        self,
        frozen: FrozenBackbone,
        depth: int,
        patches: LabelledPatches,
        *,
        views: int,
        passes: int,
        cache: ActivationCache,
    ) -> None:
        self._frozen = frozen
        self._depth = depth
        self._patches = patches
        self._met = {"views": views, "passes": passes}
        self._cache = cache
        self._entries: dict[int, Entry] | None = None

    @contextmanager
    def computing(self, wanted: Mapping[int, list[int]]) -> Iterator[BlockForward]:
        """Yields what computes blocks, of which ``wanted`` may be asked for in each view."""
        if self._entries is None:
            self._entries = self._opened()
        lacking = {
            depth: entry
            for depth, entry in self._entries.items()
            if any(entry.missing(view, blocks) for view, blocks in wanted.items())
        }
        forward = self._frozen.forward([self._depth, *lacking])
        with ExitStack() as stack:
            accepts = [stack.enter_context(entry.accepting()) for entry in lacking.values()]

            def compute(
                view: int, block: int, pixels: NDArray[np.uint8], n: int
            ) -> NDArray[np.float32]:
                own, *others = forward(pixels)
                for accept, values in zip(accepts, others, strict=True):
                    accept(view, block, values[:n])
                return own[:n]

            yield compute

    def _opened(self) -> dict[int, Entry]:
        found = {}
        left = MOST_BESIDE_BYTES
        for depth, boundary in self._frozen.boundaries.items():
            if depth == self._depth:
                continue
            left -= boundary.patch_bytes
            if left < 0:
                break
            spare = self._cache.spare_bytes(boundary.identity_of(self._patches))
            plan = boundary.plan(self._patches, **self._met, max_bytes=spare)
            if plan.n_kept == plan.n_blocks:
                entry = boundary.entry(self._cache, self._patches, plan)
                if entry is not None:
                    found[depth] = entry
        return found
