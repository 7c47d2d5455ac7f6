"""Initial weights of the backbone, and a digest of weights that doesn't depend on file formats."""

from __future__ import annotations

import hashlib
from pathlib import Path

import keras
import numpy as np
from numpy.typing import NDArray

from src import paths
from src.model.backbone import BACKBONES, PinnedFile
from src.params import ModelParams
from src.system.durable import sha256_file
from src.system.errors import ProjectError


class WeightsError(ProjectError):
    """The initial weights asked for can't be had. Never replaced by others in silence."""


def load_initial_weights(model: keras.Model, params: ModelParams) -> None:
    """Put the weights that ``params.weights`` names into the backbone of ``model``.

    ``none`` leaves the random weights the model was built with. ``imagenet`` downloads Keras' file
    once and checks its size and MD5, the digest its authors publish. Anything else is the path of
    a ResNet50 weights file without top, accepted when it is that same file or when
    ``params.weights_sha256`` names its SHA-256: HDF5 from elsewhere is not opened.
    """
    if params.weights == "none":
        return
    pinned = BACKBONES[params.backbone].imagenet
    if params.weights == "imagenet":
        file = _download(pinned, backbone=params.backbone)
    else:
        file = paths.ROOT / params.weights
        if not file.is_file():
            raise WeightsError(
                f"weights file not found: {file}; set model.weights to imagenet, none or a file"
            )
    _check_bytes(file, pinned, sha256=params.weights_sha256)
    _load_backbone(model, file, params)


def weights_sha256(model: keras.Model) -> str:
    """SHA-256 over path, dtype, shape and values of every weight, in the model's order."""
    digest = hashlib.sha256()
    for variable in model.weights:
        value: NDArray[np.float32] = np.ascontiguousarray(variable.numpy())
        digest.update(f"{variable.path} {value.dtype} {value.shape}\n".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()


def _download(pinned: PinnedFile | None, *, backbone: str) -> Path:
    if pinned is None:
        raise WeightsError(f"no ImageNet weights are known for {backbone}; set model.weights: none")
    try:
        return Path(keras.utils.get_file(origin=pinned.url, cache_subdir="models"))
    except Exception as error:  # urllib, ssl and socket errors have no common base
        name = pinned.url.rsplit("/", 1)[-1]
        raise WeightsError(
            f"ImageNet weights could not be downloaded ({error}); either fetch {name} elsewhere "
            "and set model.weights to its path, or set model.weights: none for random weights"
        ) from error


def _check_bytes(file: Path, pinned: PinnedFile | None, *, sha256: str | None) -> None:
    actual = sha256_file(file)
    if sha256 is not None:
        if actual != sha256:
            raise WeightsError(
                f"sha256 mismatch: {file} has {actual}, model.weights_sha256 says {sha256}"
            )
    elif pinned is None or file.stat().st_size != pinned.n_bytes or _md5(file) != pinned.md5:
        raise WeightsError(
            f"unknown weights file {file} (sha256 {actual}): not Keras' published ImageNet file; "
            "if you trust it, set model.weights_sha256 to that digest"
        )


def _md5(file: Path) -> str:
    digest = hashlib.md5(file.read_bytes(), usedforsecurity=False)
    return digest.hexdigest()


def _load_backbone(model: keras.Model, file: Path, params: ModelParams) -> None:
    # loaded through a bare backbone: in ours, layers before and after would shift the order by
    # which Keras matches a weights file
    size = (params.input_size, params.input_size, 3)
    bare = BACKBONES[params.backbone].build(keras.Input(size))
    try:
        bare.load_weights(file)
    except (ValueError, OSError, KeyError) as error:
        raise WeightsError(
            f"weights file {file} doesn't fit {params.backbone} without top ({error})"
        ) from error
    for layer in bare.layers:
        if layer.weights:
            model.get_layer(layer.name).set_weights(layer.get_weights())
