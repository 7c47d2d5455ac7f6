"""A split's inputs to the tail: through the frozen trunk and its cache, where there is a trunk."""

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from src.data import views as data_views
from src.data.labelled import LabelledPatches
from src.model.cache import ActivationCache
from src.model.cache_plan import plan_cache
from src.model.checkpoint import files_digest
from src.model.folding import folded
from src.model.inputs import CachedInputs, Inputs, PixelInputs, trunk_forward
from src.model.weights import weights_sha256
from src.params import CacheParams
from src.system.determinism import Environment

if TYPE_CHECKING:
    from logging import Logger

    import keras

_CODE = [
    Path(data_views.__file__),
    *(
        Path(__file__).with_name(f"{name}.py")
        for name in ("activations", "backbone", "classifier", "folding", "inputs", "preprocessing")
    ),
]
_DECIDES_BITS = ("tensorflow", "keras", "onednn", "gpus", "threads", "processor", "platform")


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
            self._folded = folded(model)
            self._forward = trunk_forward(self._folded)
            self.identity = {
                "architecture": architecture_sha256(model),
                "weights": weights_sha256(model),
                "dtype": self._dtype.name,
                "environment": {name: environment.get(name) for name in _DECIDES_BITS},
                "code": files_digest(*_CODE),
            }

    def augmented(self, patches: LabelledPatches, augmentation: "keras.Model") -> Inputs:
        """``patches`` in new colours every time: their pixels are needed, so nothing is kept."""
        import tensorflow as tf

        if self.model is not None:
            self._log.info(f"{patches.split}: new colours each time, so frozen layers run as well")

        @tf.function(reduce_retracing=True)
        def transform(pixels: Any) -> Any:
            changed = augmentation(pixels, training=True)
            return changed if self.model is None else self._folded(changed, training=False)

        return PixelInputs(patches, transform)

    def inputs(self, patches: LabelledPatches, *, views: int, passes: int) -> Inputs:
        """``patches`` as the tail meets them over ``passes`` passes in ``views`` views."""
        if self.model is None:
            return PixelInputs(patches)
        shape: tuple[int, ...] = self.model.output_shape[1:]
        identity = {**self.identity, "patches": patches.digest, "shape": [len(patches), *shape]}
        plan = plan_cache(
            n_patches=len(patches),
            patch_bytes=int(np.prod(shape)) * self._dtype.itemsize,
            views=views,
            passes=passes,
            max_bytes=self._cache.free_bytes(identity),
        )
        if plan.reason is not None:
            self._log.info(f"{patches.split}: {plan.reason}")
        return CachedInputs(
            patches,
            self._forward,
            entry=self._cache.entry(
                identity, plan.n_bytes, n=len(patches), shape=shape, dtype=self._dtype
            ),
            plan=plan,
            shape=shape,
            dtype=self._dtype,
            log=self._log,
        )


def architecture_sha256(model: "keras.Model") -> str:
    """SHA-256 of what ``model`` computes, weights apart.

    Names don't count (Keras numbers those it gives by what was built before), nor whether a layer
    is trainable: the trunk runs in inference mode.
    """
    config = model.get_config()
    names = {layer["config"]["name"]: f"layer {i}" for i, layer in enumerate(config["layers"])}

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items() if key != "trainable"}
        if isinstance(value, (list, tuple)):
            return [plain(item) for item in value]
        return names.get(value, value) if isinstance(value, str) else value

    text = json.dumps(plain({**config, "name": ""}), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()
