"""The backbone before anything of it is fine-tuned, for passes that serve several depths."""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from src.model.boundary import Boundary, boundary_at
from src.model.folding import folded
from src.params import CacheParams
from src.system.determinism import Environment

if TYPE_CHECKING:
    import keras

SharedForward = Callable[[NDArray[np.uint8]], list[NDArray[np.float32]]]
"""uint8 patches (k, 96, 96, 3) → their activations (k, …) at each boundary asked for."""


class FrozenBackbone:
    """A copy of a classifier's layers as they are now, cut at several depths.

    What is trained afterwards doesn't reach it: neither its outputs nor the identities of its
    boundaries, which are those that a phase gives the same cut of the same weights.

    Attributes
    ----------
    boundaries : by depth, in ascending order: the smallest activations first. Depths that leave
        nothing frozen have none
    """

    def __init__(
        self,
        classifier: "keras.Model",
        *,
        backbone: str,
        depths: Iterable[int],
        cache_params: CacheParams,
        environment: Environment,
    ) -> None:
        import keras

        self.boundaries: dict[int, Boundary] = {}
        for depth in sorted(set(depths)):
            boundary = boundary_at(
                depth,
                classifier,
                backbone=backbone,
                cache_params=cache_params,
                environment=environment,
            )
            if boundary is not None:
                self.boundaries[depth] = boundary
        outputs = [boundary.model.output for boundary in self.boundaries.values()]
        copy = folded(keras.Model(classifier.input, outputs))
        self._input = copy.input
        self._outputs = dict(zip(self.boundaries, copy.outputs, strict=True))
        self._forwards: dict[tuple[int, ...], SharedForward] = {}

    def is_same_at(self, depth: int, boundary: Boundary | None) -> bool:
        """Whether its activations at ``depth`` are those at ``boundary``."""
        own = self.boundaries.get(depth)
        return own is not None and boundary is not None and own.identity == boundary.identity

    def forward(self, depths: Iterable[int]) -> SharedForward:
        """A pass in inference mode that gives the activations at these depths, in their order."""
        key = tuple(depths)
        if key not in self._forwards:
            self._forwards[key] = self._compiled(key)
        return self._forwards[key]

    def _compiled(self, depths: tuple[int, ...]) -> SharedForward:
        import keras
        import tensorflow as tf

        layers = keras.Model(self._input, [self._outputs[depth] for depth in depths])

        @tf.function(reduce_retracing=True, autograph=False)
        def forward(pixels: Any) -> Any:
            return layers(pixels, training=False)

        def outputs(pixels: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
            # of a list of one output Keras makes that output
            return [output.numpy() for output in tf.nest.flatten(forward(tf.constant(pixels)))]

        return outputs
