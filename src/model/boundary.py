"""Where the classifier is cut: what activations there depend on, and their place in the cache."""

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from src.data import batches as data_views
from src.data.dataset import LabelledPatches
from src.model.cache import ActivationCache, Entry
from src.model.cache_plan import CachePlan, plan_cache
from src.model.checkpoint import files_digest
from src.model.freezing import cut
from src.model.weights import weights_sha256
from src.params import CacheParams
from src.system.determinism import Environment

if TYPE_CHECKING:
    import keras

_CODE = [
    Path(data_views.__file__),
    *(
        Path(__file__).with_name(f"{name}.py")
        for name in (
            "activations",
            "backbone",
            "classifier",
            "folding",
            "frozen",
            "inputs",
            "preprocessing",
            "shared_pass",
        )
    ),
]
_DECIDES_BITS = ("tensorflow", "keras", "onednn", "gpus", "threads", "processor", "platform")


class Boundary:
    """The frozen layers below a cut, ``model``, and how their activations are kept.

    Pooled features (depth 0) are kept in float32 whatever ``cache.dtype`` says: they are small, and
    standardising them would magnify the rounding.

    Attributes
    ----------
    identity : what the activations of given patches depend on, the weights of this moment included
    shape, dtype : of a patch's activations, as they are kept
    """

    def __init__(
        self,
        model: "keras.Model",
        *,
        depth: int,
        cache_params: CacheParams,
        environment: Environment,
    ) -> None:
        self.model = model
        self.dtype: np.dtype[Any] = np.dtype("float32" if depth == 0 else cache_params.dtype)
        self.shape: tuple[int, ...] = model.output_shape[1:]
        self.identity = {
            "architecture": architecture_sha256(model),
            "weights": weights_sha256(model),
            "dtype": self.dtype.name,
            "environment": {name: environment.get(name) for name in _DECIDES_BITS},
            "code": files_digest(*_CODE),
        }

    @property
    def patch_bytes(self) -> int:
        """Disk that the activations of a patch take in one view."""
        return int(np.prod(self.shape)) * self.dtype.itemsize

    def identity_of(self, patches: LabelledPatches) -> dict[str, Any]:
        """What the activations of these patches depend on."""
        shape = [len(patches), *self.shape]
        return {**self.identity, "patches": patches.digest, "shape": shape}

    def plan(
        self, patches: LabelledPatches, *, views: int, passes: int, max_bytes: int
    ) -> CachePlan:
        """How much of the activations of ``patches`` is kept."""
        return plan_cache(
            n_patches=len(patches),
            patch_bytes=self.patch_bytes,
            views=views,
            passes=passes,
            max_bytes=max_bytes,
        )

    def entry(
        self, cache: ActivationCache, patches: LabelledPatches, plan: CachePlan
    ) -> Entry | None:
        """Where that is kept; None where nothing is."""
        kind: dict[str, Any] = {"n": len(patches), "shape": self.shape, "dtype": self.dtype}
        return cache.entry(self.identity_of(patches), plan.n_bytes, **kind)


def boundary_at(
    depth: int,
    classifier: "keras.Model",
    *,
    backbone: str,
    cache_params: CacheParams,
    environment: Environment,
) -> Boundary | None:
    """Where ``depth`` cuts a classifier; None where that leaves nothing frozen."""
    trunk, _ = cut(classifier, backbone=backbone, depth=depth)
    if trunk is None:
        return None
    return Boundary(trunk, depth=depth, cache_params=cache_params, environment=environment)


def architecture_sha256(model: "keras.Model") -> str:
    """SHA-256 of what ``model`` computes, weights apart.

    Names don't count (Keras numbers those it gives by what was built before), nor whether a layer
    is trainable: frozen layers run in inference mode.
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
