"""A split's inputs to the tail: through the frozen trunk and its cache, where there is a trunk."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from src.data.labelled import LabelledPatches
from src.model.cache import ActivationCache
from src.model.cache_plan import plan_cache
from src.model.checkpoint import files_digest
from src.model.folding import folded
from src.model.freezing import boundary_layer
from src.model.inputs import CachedInputs, Inputs, PixelInputs, trunk_forward
from src.model.weights import weights_sha256
from src.params import CacheParams, ModelParams
from src.system.determinism import Environment

if TYPE_CHECKING:
    from logging import Logger

    import keras

_CODE = [
    Path(__file__).with_name(f"{name}.py") for name in ("preprocessing", "backbone", "folding")
]
_SOFTWARE = ("tensorflow", "keras", "onednn", "gpus")


class Trunk:
    """The frozen part of a classifier cut at ``depth``, computed once for all who need it.

    ``model`` is None where nothing is frozen: the tail then takes the pixels. Pooled features
    (depth 0) are kept in float32 whatever ``cache.dtype`` says: they are small, and standardising
    them would magnify the rounding.
    """

    def __init__(
        self,
        model: "keras.Model | None",
        *,
        depth: int,
        params: ModelParams,
        cache_params: CacheParams,
        cache: ActivationCache,
        environment: Environment,
        log: "Logger",
    ) -> None:
        self.model = model
        self._dtype = np.dtype("float32" if depth == 0 else cache_params.dtype)
        self._cache = cache
        self._log = log
        if model is not None:
            self._forward = trunk_forward(folded(model))
            self._identity = {
                "weights": weights_sha256(model),
                "boundary": boundary_layer(backbone=params.backbone, depth=depth),
                "preprocessing": params.model_dump(
                    include={"backbone", "input_size", "centre_crop"}
                ),
                "dtype": self._dtype.name,
                "software": {name: environment.get(name) for name in _SOFTWARE},
                "code": files_digest(*_CODE),
            }

    def augmented(self, patches: LabelledPatches, augmentation: "keras.Model") -> Inputs:
        """``patches`` in new colours every time: their pixels are needed, so nothing is kept."""
        import tensorflow as tf

        self._log.info(f"{patches.split}: augmented pixels, so frozen layers run in every epoch")

        @tf.function(reduce_retracing=True)
        def transform(pixels: Any) -> Any:
            changed = augmentation(pixels, training=True)
            return changed if self.model is None else self.model(changed, training=False)

        return PixelInputs(patches, transform)

    def inputs(self, patches: LabelledPatches, *, views: int, epochs: int) -> Inputs:
        """``patches`` as the tail meets them over ``epochs`` passes in ``views`` views."""
        if self.model is None:
            return PixelInputs(patches)
        shape: tuple[Any, ...] = self.model.output_shape[1:]
        plan = plan_cache(
            n_patches=len(patches),
            patch_bytes=int(np.prod(shape)) * self._dtype.itemsize,
            views=views,
            epochs=epochs,
            max_bytes=self._cache.free_bytes,
        )
        if plan.reason is not None:
            self._log.info(f"{patches.split}: {plan.reason}")
        return CachedInputs(
            patches,
            self._forward,
            folder=self._cache.entry({**self._identity, "patches": patches.digest}, plan.n_bytes),
            plan=plan,
            shape=shape,
            dtype=self._dtype,
            log=self._log,
        )
