"""Activations of the frozen layers: from a patch to what enters the trained tail.

Below the cut nothing changes while the tail is trained, so a patch's activations there are computed
once and kept in ``.cache/activations``: one folder for everything they depend on (pixels, trunk,
type, software, machine, code), in it one file for each view and block of 64 patches. A file is
there whole or not at all, and two processes that write the same one write the same bytes, so
nothing is locked. A file that is missing or damaged is computed again.

Kept or computed for the batch, activations have the same bits: both are rounded to ``cache.dtype``,
and the trunk gives a patch the same bits in whatever batch it comes (a test checks it on CPU). So
the disk decides how long a run takes, and nothing else.

The cut is always the deepest possible. That saves the most work, and takes the least disk: channels
double where height and width halve (a test checks every backbone and depth).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import cached_property
from logging import Logger
from pathlib import Path
from typing import Any, Protocol

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from src import paths
from src.data.batches import VIEW_BLOCK, Batch, apply_view, apply_views, n_batches
from src.data.dataset import LabelledPatches
from src.model.classifier import cut
from src.model.weights import weights_sha256
from src.params import CacheParams, ModelParams
from src.system.determinism import Environment
from src.system.durable import WriteError, replacing
from src.system.errors import ProjectError
from src.system.identity import training_code_digest
from src.system.progress import progress

Pass = Callable[[NDArray[np.uint8]], list[NDArray[np.float32]]]
"""uint8 patches (k, 96, 96, 3) → float32 activations (k, …) at each boundary asked for."""

DISK_MARGIN_BYTES = 2 * 10**9
"""Disk left free for what must not fail: checkpoints (0.5 GB at most), models, the MLflow store."""

_NOT_OF_THE_TRUNK = {"dropout", "weights", "weights_sha256"}  # the weights have their own digest
_DECIDES_BITS = ("tensorflow", "keras", "onednn", "gpus", "threads", "processor", "platform")
_ROWS_STEP = 16  # rows computed for a batch are filled up to a multiple: few shapes are compiled
_CRC_BYTES = 4  # at the end of a block's file


class ActivationsOverflow(ProjectError):
    """An activation is too large for ``cache.dtype``, or is not a number."""


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
        pixels = self._patches.take(batch.positions)
        tensor = tf.constant(apply_views(pixels, batch.views))
        return tensor if self._transform is None else self._transform(tensor)


class Boundary:
    """Where ``depth`` cuts a classifier, and what activations there depend on.

    Pooled features (depth 0) are kept in float32 whatever ``cache.dtype`` says: they are small, and
    standardising them would magnify the rounding.

    Attributes
    ----------
    trunk : the frozen layers, uint8 patches → activations
    shape, dtype : of a patch's activations, as they are kept
    """

    def __init__(
        self,
        trunk: keras.Model,
        depth: int,
        model: ModelParams,
        dtype: str,
        environment: Environment,
    ) -> None:
        self.trunk = trunk
        self.depth = depth
        self._model, self._environment = model, environment
        self.shape: tuple[int, ...] = trunk.output_shape[1:]
        self.dtype: np.dtype[Any] = np.dtype("float32" if depth == 0 else dtype)

    def stored(self, values: NDArray[np.float32]) -> NDArray[np.generic]:
        """``values`` rounded to the type that is kept.

        Raises
        ------
        ActivationsOverflow
            One doesn't fit, or is no number.
        """
        with np.errstate(over="ignore"):
            stored = values.astype(self.dtype, copy=False)
        if not np.isfinite(stored).all():
            raise ActivationsOverflow(
                f"activations up to {np.abs(values).max():.3g} don't fit {self.dtype}; "
                "set cache.dtype: float32, or look at the weights if that is what it is"
            )
        return stored

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What the activations of a patch depend on, the weights when it is first asked for."""
        pooling = {"pooling"} if self.depth else set()
        return {
            "network": self._model.model_dump(exclude=_NOT_OF_THE_TRUNK | pooling),
            "depth": self.depth,
            "weights": weights_sha256(self.trunk),
            "dtype": self.dtype.name,
            "environment": {name: self._environment.get(name) for name in _DECIDES_BITS},
            "code": training_code_digest(),
        }


class Blocks:
    """The files of one split's activations at one boundary: ``<folder>/<view>/<block>.bin``.

    A file holds the block's rows, then their CRC-32.

    Attributes
    ----------
    n_kept : views below this number are kept, others have no files
    view_bytes : disk that one view of the split takes
    """

    def __init__(self, boundary: Boundary, patches: LabelledPatches, *, views: int) -> None:
        identity = json.dumps([boundary.identity, patches.digest], sort_keys=True)
        self.folder = paths.ACTIVATIONS / hashlib.sha256(identity.encode()).hexdigest()[:32]
        self.boundary = boundary
        self._n = len(patches)
        self._n_blocks = n_batches(self._n, VIEW_BLOCK)
        self._row_bytes = int(np.prod(boundary.shape)) * boundary.dtype.itemsize
        self.view_bytes = self._n * self._row_bytes + self._n_blocks * _CRC_BYTES
        self.keep(views)

    def keep(self, n_views: int) -> None:
        """Decide how many views are kept."""
        self.n_kept = n_views
        self._verified = np.zeros((n_views, self._n_blocks), np.bool_)  # whole, as this process saw

    @property
    def is_complete(self) -> bool:
        """Whether every block of every view that is kept has its file."""
        views = [self.folder / str(view) for view in range(self.n_kept)]
        return sum(len(list(view.glob("*.bin"))) for view in views) == self._verified.size

    def lacks(self, view: int, block: int) -> bool:
        """Whether a block that is to be kept is not there, or not as it was written."""
        if view >= self.n_kept:
            return False
        if not self._verified[view, block]:
            self._verified[view, block] = self._is_whole(view, block)
        return not self._verified[view, block]

    def write(self, view: int, block: int, values: NDArray[np.float32]) -> None:
        """Keep a block's activations (rows, …)."""
        data = self.boundary.stored(values).tobytes()
        with replacing(self._path(view, block)) as temporary:
            temporary.write_bytes(data + _crc32(data))
        self._verified[view, block] = True

    def read(self, view: int, positions: NDArray[np.int64]) -> NDArray[np.generic] | None:
        """Rows ``positions`` (k,) of one block → (k, …); None where they must be computed."""
        block = int(positions[0]) // VIEW_BLOCK
        if view >= self.n_kept or not self._verified[view, block]:
            return None
        rows = np.empty((len(positions), self._row_bytes), np.uint8)
        n_read = 0
        # FileNotFoundError: another process needed the room
        with suppress(FileNotFoundError), self._path(view, block).open("rb", buffering=0) as file:
            # read, not mapped: what was read doesn't count as memory of this process
            for row, position in zip(rows, (positions % VIEW_BLOCK).tolist(), strict=True):
                n_read += os.preadv(file.fileno(), [row.data], position * self._row_bytes)
        if n_read < rows.size:
            self._verified[view, block] = False
            return None
        return rows.view(self.boundary.dtype).reshape(len(positions), *self.boundary.shape)

    def _is_whole(self, view: int, block: int) -> bool:
        try:
            data = self._path(view, block).read_bytes()
        except FileNotFoundError:
            return False
        rows, crc = data[:-_CRC_BYTES], data[-_CRC_BYTES:]
        n_rows = min(VIEW_BLOCK, self._n - block * VIEW_BLOCK)
        return len(rows) == n_rows * self._row_bytes and _crc32(rows) == crc

    def _path(self, view: int, block: int) -> Path:
        return self.folder / str(view) / f"{block}.bin"


class ActivationInputs:
    """Activations of a split, from their files or computed; keeps those of ``others`` on the way.

    ``compute(depths)`` is the pass through the frozen layers for these depths, made when needed.
    """

    def __init__(
        self,
        patches: LabelledPatches,
        compute: Callable[[tuple[int, ...]], Pass],
        *,
        blocks: Blocks,
        others: Sequence[Blocks],
        log: Logger,
    ) -> None:
        self._patches = patches
        self._compute = compute
        self._boundary = blocks.boundary
        self._blocks = blocks
        self._others = others
        self._log = log

    def prepare(self, views: NDArray[np.int64]) -> None:
        """Compute the blocks of this pass that are to be kept and are not there yet."""
        wanted = list(enumerate(views[::VIEW_BLOCK].tolist()))  # a block shares its view
        missing = [(block, view) for block, view in wanted if self._blocks.lacks(view, block)]
        if not missing:
            return
        kept = [self._blocks]
        kept += [x for x in self._others if any(x.lacks(view, block) for block, view in missing)]
        compute = self._compute(tuple(x.boundary.depth for x in kept))
        task = f"{self._patches.split}: frozen layers computed for"
        n_patches = min(len(missing) * VIEW_BLOCK, len(self._patches))
        try:
            with progress(task, n_patches, "patches", self._log) as advance:
                for block, view in missing:
                    first = block * VIEW_BLOCK
                    positions = np.arange(first, min(first + VIEW_BLOCK, len(self._patches)))
                    pixels = apply_view(self._patches.take(positions), view)
                    activations = compute(_filled_up(pixels, VIEW_BLOCK))
                    self._blocks.write(view, block, activations[0][: len(positions)])
                    for blocks, values in zip(kept[1:], activations[1:], strict=True):
                        if blocks.lacks(view, block):
                            # a value that doesn't fit there is for who trains there to say
                            with suppress(ActivationsOverflow):
                                blocks.write(view, block, values[: len(positions)])
                    advance(len(positions))
        except (OSError, WriteError) as error:
            self._log.warning(
                f"activations can't be kept ({error}): they are computed in every epoch"
            )
            self._blocks.keep(0)

    def __call__(self, batch: Batch) -> Any:
        values = np.empty((len(batch.positions), *self._boundary.shape), self._boundary.dtype)
        lacking = np.zeros(len(values), np.bool_)
        # (batch,): one number for each pair of block and view, whose rows lie in one file
        files = batch.positions // VIEW_BLOCK * 8 + batch.views
        for file in np.unique(files).tolist():
            chosen = np.flatnonzero(files == file)
            rows = self._blocks.read(file % 8, batch.positions[chosen])
            if rows is None:
                lacking[chosen] = True
            else:
                values[chosen] = rows
        if lacking.any():
            positions, views = batch.positions[lacking], batch.views[lacking]
            pixels = _filled_up(apply_views(self._patches.take(positions), views), _ROWS_STEP)
            (computed,) = self._compute((self._boundary.depth,))(pixels)
            values[lacking] = self._boundary.stored(computed[: len(positions)])
        return tf.cast(tf.constant(values), tf.float32)


class FrozenLayers:
    """The frozen part of a classifier cut at ``depth``, with its activations of every split.

    ``depths`` are others whose activations are wanted too: a pass through the frozen layers for
    this phase keeps theirs as well, as far as there is room to spare. Their layers are copied now,
    before any of them is trained.

    Where nothing is frozen the tail takes the pixels.
    """

    def __init__(
        self,
        classifier: keras.Model,
        *,
        model: ModelParams,
        depth: int,
        cache: CacheParams,
        environment: Environment,
        depths: Iterable[int] = (),
        log: Logger,
    ) -> None:
        self._max_bytes = int(cache.max_gb * 1e9)
        self._log = log
        self._in_use: list[Blocks] = []
        self._passes: dict[tuple[int, ...], Pass] = {}
        self._copy: keras.Model | None = None
        self._boundaries: dict[int, Boundary] = {}  # the own one first, then from the top down
        for each in dict.fromkeys([depth, *sorted(depths)]):
            trunk, _ = cut(classifier, backbone=model.backbone, depth=each)
            if trunk is not None:
                self._boundaries[each] = Boundary(trunk, each, model, cache.dtype, environment)
        self._own = self._boundaries.get(depth)

    def inputs(self, patches: LabelledPatches, *, views: int) -> Inputs:
        """``patches`` as the tail meets them, in their first ``views`` views."""
        own = self._own
        if own is None:
            return PixelInputs(patches)
        blocks = Blocks(own, patches, views=views)
        self._make_room(patches.split, blocks)
        others: list[Blocks] = []
        if blocks.n_kept and not blocks.is_complete:
            others = self._others(patches, views=views)
        if others and self._copy is None:
            trunks = [boundary.trunk for boundary in self._boundaries.values()]
            self._copy = folded(keras.Model(trunks[0].input, [trunk.output for trunk in trunks]))
        return ActivationInputs(patches, self._pass, blocks=blocks, others=others, log=self._log)

    def give_way(self) -> None:
        """Free the disk that activations take, all of them: they are computed in every epoch."""
        for blocks in self._in_use:
            blocks.keep(0)
        shutil.rmtree(paths.ACTIVATIONS, ignore_errors=True)

    def augmented(self, patches: LabelledPatches, augmentation: keras.Model) -> Inputs:
        """``patches`` in new colours every time: their pixels are needed, so nothing is kept."""
        frozen = None if self._own is None else folded(self._own.trunk)
        if frozen is not None:
            self._log.info(f"{patches.split}: new colours each time, so frozen layers run as well")

        @tf.function(reduce_retracing=True, autograph=False)
        def transform(pixels: Any) -> Any:
            changed = augmentation(pixels, training=True)
            return changed if frozen is None else frozen(changed, training=False)

        return PixelInputs(patches, transform)

    def _make_room(self, split: str, blocks: Blocks) -> None:
        """Decide how many views are kept; activations of other identities give way, oldest first.

        All of the split's blocks in a view are kept, or none.
        """
        others = self._unused(blocks)
        present = _bytes_below(blocks.folder)
        of_disk = present + shutil.disk_usage(paths.ACTIVATIONS).free - DISK_MARGIN_BYTES
        available = min(self._max_bytes - self._granted(), of_disk + sum(others.values()))
        wanted, fit = blocks.n_kept, max(0, available) // blocks.view_bytes
        if fit < wanted:
            blocks.keep(fit)
            all_gb = wanted * blocks.view_bytes / 1e9
            self._log.info(
                f"{split}: activations of {fit} of {wanted} views are kept, others are computed in "
                f"every epoch; all would take {all_gb:,.1f} GB (cache.max_gb)"
            )
        if present > available:  # of a time when there was more room
            shutil.rmtree(blocks.folder, ignore_errors=True)
        needed = blocks.n_kept * blocks.view_bytes
        while others and (sum(others.values()) + needed > available or needed > of_disk):
            oldest = next(iter(others))
            of_disk += others.pop(oldest)
            shutil.rmtree(oldest, ignore_errors=True)
        blocks.folder.mkdir(parents=True, exist_ok=True)
        os.utime(blocks.folder)  # used now
        self._in_use.append(blocks)

    def _others(self, patches: LabelledPatches, *, views: int) -> list[Blocks]:
        """Those of other depths, smallest first, as long as nothing has to give way."""
        found = []
        for boundary in list(self._boundaries.values())[1:]:
            blocks = Blocks(boundary, patches, views=views)
            others = sum(self._unused(blocks).values())
            of_disk = shutil.disk_usage(paths.ACTIVATIONS).free - DISK_MARGIN_BYTES
            spare = min(self._max_bytes - others, of_disk) - self._granted()
            if views * blocks.view_bytes > spare:
                break
            self._in_use.append(blocks)
            found.append(blocks)
        return found

    def _granted(self) -> int:
        """Disk that what is in use may take."""
        return sum(blocks.n_kept * blocks.view_bytes for blocks in self._in_use)

    def _unused(self, blocks: Blocks) -> dict[Path, int]:
        """Folders of other identities, the one used longest ago first, and the bytes they take."""
        paths.ACTIVATIONS.mkdir(parents=True, exist_ok=True)
        used = {blocks.folder, *(each.folder for each in self._in_use)}
        ages = {}
        for folder in set(paths.ACTIVATIONS.iterdir()) - used:
            with suppress(FileNotFoundError):  # another process needed the room
                ages[folder] = folder.stat().st_mtime
        return {folder: _bytes_below(folder) for folder in sorted(ages, key=ages.__getitem__)}

    def _pass(self, depths: tuple[int, ...]) -> Pass:
        """A pass in inference mode that gives the activations at these depths, in their order.

        Made when it is needed: that takes half a second, and all may be on disk.
        """
        if depths not in self._passes:
            if self._copy is None:
                assert self._own is not None
                layers = folded(self._own.trunk)
            else:
                outputs = dict(zip(self._boundaries, self._copy.outputs, strict=True))
                layers = keras.Model(self._copy.input, [outputs[depth] for depth in depths])
            self._passes[depths] = _compiled(layers)
        return self._passes[depths]


def folded(trunk: keras.Model) -> keras.Model:
    """A copy of ``trunk`` in which every BatchNorm straight after a convolution is part of it.

    Its outputs are those of ``trunk(…, training=False)`` to rounding (about 2e-6 of the largest
    one; not bit-equal), with two passes over memory fewer after each convolution. The copy holds
    the trunk's weights of this moment and shares none of them: it is not for training.

    Frozen BatchNorm is the affine map γ (y - μ) / √(σ² + ε) + β of the convolution's output
    y = K x + b, hence itself a convolution with kernel K γ / √(σ² + ε) (Jacob et al. 2018,
    arXiv:1712.05877, section 3.2). Computed in float64, stored in float32.
    """
    # what reads the output of each operation within this model: every cut of a classifier is a
    # model of its own on the same layers, and what others read must not matter
    readers: dict[keras.Operation, list[keras.Operation]] = {}
    for node in (each for nodes in trunk._nodes_by_depth.values() for each in nodes):
        for parent in node.parent_nodes:
            readers.setdefault(parent.operation, []).append(node.operation)
    after = {}  # a BatchNorm's name → that of the convolution with bias that it alone reads
    for layer in trunk.layers:
        found = readers.get(layer, [])
        if (
            type(layer) is keras.layers.Conv2D
            and layer.use_bias
            and layer.activation is keras.activations.linear
            and layer.data_format == "channels_last"
            and [type(reader) for reader in found] == [keras.layers.BatchNormalization]
        ):
            after[found[0].name] = layer.name

    def call(layer: keras.layers.Layer, *args: Any, **kwargs: Any) -> Any:
        return args[0] if layer.name in after else layer(*args, **kwargs)

    copy = keras.models.clone_model(trunk, call_function=call)
    for layer in filter(lambda layer: layer.weights, copy.layers):
        layer.set_weights(trunk.get_layer(layer.name).get_weights())
    for normalisation, convolution in after.items():
        norm = trunk.get_layer(normalisation)
        kernel, bias = (w.astype(np.float64) for w in trunk.get_layer(convolution).get_weights())
        gamma, beta, mean, variance = (w.astype(np.float64) for w in norm.get_weights())
        scale = gamma / np.sqrt(variance + norm.epsilon)
        weights = [kernel * scale, (bias - mean) * scale + beta]
        copy.get_layer(convolution).set_weights(weights)
    return copy


def _compiled(layers: keras.Model) -> Pass:
    @tf.function(reduce_retracing=True, autograph=False)
    def forward(pixels: Any) -> Any:
        return layers(pixels, training=False)

    # of a list of one output Keras makes that output
    return lambda pixels: [x.numpy() for x in tf.nest.flatten(forward(tf.constant(pixels)))]


def _crc32(data: bytes) -> bytes:
    return zlib.crc32(data).to_bytes(_CRC_BYTES, "little")


def _filled_up(pixels: NDArray[np.uint8], multiple: int) -> NDArray[np.uint8]:
    """With the first patch repeated at the end, up to a multiple of ``multiple``."""
    return np.concatenate([pixels, np.repeat(pixels[:1], -len(pixels) % multiple, axis=0)])


def _bytes_below(folder: Path) -> int:
    n_bytes = 0
    with suppress(FileNotFoundError):  # another process needed the room
        for file in folder.rglob("*.*"):  # half-written ones of killed processes too
            n_bytes += file.stat().st_size
    return n_bytes
