"""Three ways to train the same ResNet50 on the same patches, for ``benchmarks.training``.

``ours``: the engine of ``src/model``. ``keras``: one network, frozen layers, ``fit`` on a dataset
that flips, as tutorials do it. ``torch``: torchvision's ResNet50, channels last, the same freezing.
All train with Adam, batches of 64, BatchNorm frozen, random initial weights of a seed, two views.
"""

import tempfile
import time
from abc import ABC, abstractmethod
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.measured import runtime
from src.data.dataset import LabelledPatches
from src.drawing.patches import draw_chunk
from src.drawing.plan import plan_subset
from src.evaluation.metrics import auroc

BATCH_SIZE = 64
N_VIEWS = 2
LEARNING_RATE = {0: 1e-3, 3: 2e-5, 9: 2e-5, 16: 2e-5}


@dataclass(frozen=True)
class Data:
    """Generated patches of slides that differ between ``train`` and ``val``."""

    train: LabelledPatches
    val: LabelledPatches


def generate(n_train: int, n_val: int) -> Data:
    """Draw the patches; the same numbers give the same patches."""
    return Data(
        _drawn("train", plan_subset(seed=1, subset="train", n_patches=n_train, n_slides=12)),
        _drawn("val", plan_subset(seed=1, subset="test", n_patches=n_val, n_slides=6)),
    )


def _drawn(name: str, plan: Any) -> LabelledPatches:
    pixels = np.concatenate([draw_chunk(chunk).pixels for chunk in plan.chunks()])
    ids = np.array(plan.ids())
    rows = np.arange(len(plan))
    return LabelledPatches(name, ids, rows, plan.labels, plan.slide.astype(np.str_), pixels)


class Way(ABC):
    """One way to train; holds the network of one depth at a time."""

    def __init__(self, data: Data, threads: int) -> None:
        self.data = data
        self.threads = threads
        self._open = ExitStack()

    @abstractmethod
    def build(self, depth: int, seed: int) -> None:
        """A fresh network with the top ``depth`` blocks and the head to be trained."""

    @abstractmethod
    def epoch(self, number: int) -> None:
        """Train for one epoch."""

    @abstractmethod
    def val_logits(self) -> NDArray[np.float64]:
        """Logits (n,) of val."""

    def timed_epoch(self, number: int) -> float:
        """Seconds of one epoch."""
        started = time.perf_counter()
        self.epoch(number)
        return time.perf_counter() - started

    def whole_run(self, depth: int, seed: int, epochs: int) -> tuple[float, float]:
        """Seconds from the built network to the last of ``epochs``, and the AUROC on val then."""
        self.build(depth, seed)
        started = time.perf_counter()
        for number in range(1, epochs + 1):
            self.epoch(number)
        seconds = time.perf_counter() - started
        return seconds, auroc(self.data.val.labels, self.val_logits())


def _params(depth: int) -> Any:
    from src.params import ConstantSchedule, load_params
    from src.paths import ROOT

    params = load_params(ROOT / "presets" / "sample.yaml")
    model = params.model.model_copy(update={"centre_crop": None, "dropout": 0.0})
    recipe = {
        "batch_size": BATCH_SIZE,
        "views": N_VIEWS,
        "learning_rate": LEARNING_RATE[depth],
        "schedule": ConstantSchedule(name="constant"),
        "epochs": 10,
    }
    train = params.train.model_copy(update=recipe)
    finetune = params.finetune.model_copy(update={**recipe, "depth": depth, "batch_norm": "frozen"})
    return params.model_copy(update={"model": model, "train": train, "finetune": finetune})


def begin_training(
    model: Any, data: Data, params: Any, environment: Any, folder: Path, open_: ExitStack
) -> Any:
    """The phase that a stage runs, ready for its first epoch; its state and activations go into
    ``folder``, the ways of its step last as long as ``open_``."""
    from src import paths
    from src.model.checkpoint import Checkpoint
    from src.model.step import step_ways, stepping
    from src.model.training import start_training
    from src.system.log import get_logger

    log = get_logger("benchmark")
    paths.ACTIVATIONS = folder / "activations"
    depth = params.finetune.depth
    how = step_ways(params.runtime, backbone=params.model.backbone, depth=depth, n_gpus=0)
    training = start_training(
        model,
        data.train,
        data.val,
        params,
        "finetune" if depth else "train",
        how=how,
        environment=environment,
        checkpoint=Checkpoint(folder / "state.npz", identity={}, log=log),
        log=log,
    )
    open_.enter_context(stepping(training.tail, how))
    return training


class Ours(Way):
    """The phase that ``train`` and ``finetune`` run, its steps by the loop that runs them."""

    def build(self, depth: int, seed: int) -> None:
        from src.model.classifier import build_classifier
        from src.system.determinism import start_tensorflow

        self.environment = start_tensorflow(runtime(self.threads), seed=seed)
        self.params = _params(depth)
        self.model = build_classifier(self.params.model)
        self._open.close()
        self.training: Any = None

    def epoch(self, number: int) -> None:
        if self.training is None:  # part of a whole run's time: it fills the cache
            self.training = self._begun()
        self.training.train_epoch(number, time.monotonic())

    def _begun(self) -> Any:
        """The phase of this depth, with a cache of its own."""
        folder = Path(self._open.enter_context(tempfile.TemporaryDirectory(prefix="hcd-")))
        return begin_training(
            self.model, self.data, self.params, self.environment, folder, self._open
        )

    def val_logits(self) -> NDArray[np.float64]:
        from src.model.inference import predict_outputs
        from src.system.log import get_logger

        val = self.data.val
        log = get_logger("benchmark")
        return predict_outputs(self.model, val.pixels, val.rows, batch_size=BATCH_SIZE, log=log)


class KerasFit(Way):
    """What a tutorial does, on our network, so that the weights are the same."""

    def build(self, depth: int, seed: int) -> None:
        import keras
        import tensorflow as tf

        from src.model.classifier import build_classifier, unfreeze

        tf.config.threading.set_intra_op_parallelism_threads(self.threads)
        tf.config.threading.set_inter_op_parallelism_threads(self.threads)
        keras.utils.set_random_seed(seed)
        self.model = build_classifier(_params(depth).model)
        unfreeze(self.model, backbone="resnet50", depth=depth, batch_norm="frozen")
        self.model.compile(
            optimizer=keras.optimizers.Adam(LEARNING_RATE[depth]),
            loss=keras.losses.BinaryCrossentropy(from_logits=True),
        )
        train = self.data.train
        flip = tf.image.random_flip_left_right
        self.dataset = (
            tf.data.Dataset.from_tensor_slices((train.pixels, train.labels[:, None]))
            .shuffle(len(train))
            .map(lambda pixels, label: (flip(pixels), label), num_parallel_calls=tf.data.AUTOTUNE)
            .batch(BATCH_SIZE)
            .prefetch(tf.data.AUTOTUNE)
        )

    def epoch(self, number: int) -> None:  # noqa: ARG002
        self.model.fit(self.dataset, epochs=1, verbose=0)

    def val_logits(self) -> NDArray[np.float64]:
        values = self.model.predict(self.data.val.pixels, batch_size=BATCH_SIZE, verbose=0)
        return values[:, 0].astype(np.float64)


class Torch(Way):
    """The same in PyTorch; needs torch and torchvision."""

    def build(self, depth: int, seed: int) -> None:
        import torch
        import torchvision

        torch.set_num_threads(self.threads)
        torch.manual_seed(seed)
        network = torchvision.models.resnet50(weights=None)
        network.fc = torch.nn.Linear(2048, 1)
        self.model = network.to(memory_format=torch.channels_last).eval()  # BatchNorm frozen
        blocks = [block for stage in (1, 2, 3, 4) for block in getattr(network, f"layer{stage}")]
        freed = [network.fc, *blocks[len(blocks) - depth :]] if depth < 16 else [network]
        for parameter in network.parameters():
            parameter.requires_grad_(False)
        for module in freed:
            for child in module.modules():
                if not isinstance(child, torch.nn.BatchNorm2d):
                    for parameter in child.parameters(recurse=False):
                        parameter.requires_grad_(True)
        trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.Adam(trained, lr=LEARNING_RATE[depth])

    def epoch(self, number: int) -> None:
        import torch

        rng = np.random.default_rng(number)
        train = self.data.train
        order = rng.permutation(len(train))
        for start in range(0, len(order), BATCH_SIZE):
            chosen = order[start : start + BATCH_SIZE]
            images = self._prepared(train.pixels[chosen])
            flipped = torch.from_numpy(rng.random(len(chosen)) < 0.5)
            images = torch.where(flipped[:, None, None, None], images.flip(3), images)
            labels = torch.from_numpy(train.labels[chosen].astype(np.float32))
            self.optimizer.zero_grad(set_to_none=True)
            logits = self.model(images)[:, 0]
            torch.nn.functional.binary_cross_entropy_with_logits(logits, labels).backward()
            self.optimizer.step()

    def _prepared(self, pixels: NDArray[np.uint8]) -> Any:
        import torch

        mean = torch.tensor([0.485, 0.456, 0.406])
        std = torch.tensor([0.229, 0.224, 0.225])
        images = (torch.from_numpy(pixels).float() / 255 - mean) / std
        return images.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)

    def val_logits(self) -> NDArray[np.float64]:
        import torch

        val = self.data.val
        with torch.no_grad():
            parts = [
                self.model(self._prepared(val.pixels[start : start + BATCH_SIZE]))[:, 0].numpy()
                for start in range(0, len(val), BATCH_SIZE)
            ]
        return np.concatenate(parts).astype(np.float64)


WAYS: dict[str, type[Way]] = {"ours": Ours, "keras": KerasFit, "torch": Torch}
