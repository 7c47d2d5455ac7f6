"""A split's inputs to the tail: through the frozen trunk and its cache, where there is a trunk."""

from logging import Logger
from typing import TYPE_CHECKING, Any

from src.data.dataset import LabelledPatches
from src.model.boundary import Boundary
from src.model.cache import ActivationCache
from src.model.folding import folded
from src.model.frozen import FrozenBackbone
from src.model.inputs import CachedInputs, Forward, Inputs, PixelInputs, trunk_forward
from src.model.shared_pass import SharedPass

if TYPE_CHECKING:
    import keras


class Trunk:
    """The frozen part of a classifier cut at ``depth``, computed once for all who need it.

    ``boundary`` is None where nothing is frozen: the tail then takes the pixels. Where patches have
    to go through it and ``frozen`` is the same backbone, activations at the other depths of
    ``frozen`` are kept on the way.
    """

    def __init__(
        self,
        boundary: Boundary | None,
        *,
        depth: int,
        cache: ActivationCache,
        log: Logger,
        frozen: FrozenBackbone | None = None,
    ) -> None:
        self._boundary = boundary
        self._depth = depth
        self._cache = cache
        self._log = log
        is_same = frozen is not None and frozen.is_same_at(depth, boundary)
        self._frozen = frozen if is_same else None
        self._made: Forward | None = None

    def _forward(self, own: Boundary) -> Forward:
        """Made when it is needed: that takes half a second, and all may be on disk."""
        if self._made is None:
            if self._frozen is None:
                self._made = trunk_forward(folded(own.model))
            else:
                shared = self._frozen.forward([self._depth])
                self._made = lambda pixels: shared(pixels)[0]
        return self._made

    def augmented(self, patches: LabelledPatches, augmentation: "keras.Model") -> Inputs:
        """``patches`` in new colours every time: their pixels are needed, so nothing is kept."""
        import tensorflow as tf

        frozen = None
        if self._boundary is not None:
            self._log.info(f"{patches.split}: new colours each time, so frozen layers run as well")
            frozen = folded(self._boundary.model)

        @tf.function(reduce_retracing=True, autograph=False)
        def transform(pixels: Any) -> Any:
            changed = augmentation(pixels, training=True)
            return changed if frozen is None else frozen(changed, training=False)

        return PixelInputs(patches, transform)

    def inputs(self, patches: LabelledPatches, *, views: int, passes: int) -> Inputs:
        """``patches`` as the tail meets them over ``passes`` passes in ``views`` views."""
        own, cache = self._boundary, self._cache
        if own is None:
            return PixelInputs(patches)
        met = {"views": views, "passes": passes}
        room = cache.free_bytes(own.identity_of(patches))
        plan = own.plan(patches, **met, max_bytes=room)
        if plan.reason is not None:
            self._log.info(f"{patches.split}: {plan.reason}")
        shared = None
        if self._frozen is not None:
            shared = SharedPass(self._frozen, self._depth, patches, **met, cache=cache)
        return CachedInputs(
            patches,
            lambda pixels: self._forward(own)(pixels),
            entry=own.entry(cache, patches, plan),
            plan=plan,
            shape=own.shape,
            dtype=own.dtype,
            log=self._log,
            shared=shared,
        )
