"""Trains a few steps on one device or on two; ``python -m tests.model.two_replicas <1|2> <mode>…``.

Prints, for each mode of BatchNorm, the loss of each step and the weights' sum of squares. Virtual
CPUs have to be made before TensorFlow starts, hence a process of its own; two devices can train
only once in a process.
"""

import json
import sys
from contextlib import nullcontext
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from src.model.classifier import build_classifier, cut, unfreeze
from src.model.fast_gradient import fast_input_gradients
from src.model.step import TailStep, in_replicas, mirrored_scope
from src.params import load_params
from src.paths import ROOT


def main(n_replicas: int, *modes: str) -> None:
    """Train in each mode."""
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    print(json.dumps({mode: trained(n_replicas, mode) for mode in modes}))


def trained(n_replicas: int, batch_norm: str) -> dict[str, Any]:
    """Three steps, the last of them on a batch that is partly padding."""
    from tests.model.support import SMALL, random_patches

    keras.utils.set_random_seed(1)
    params = load_params(ROOT / "presets" / "sample.yaml").finetune.model_copy(
        update={"optimizer": "sgd", "learning_rate": 0.01, "average_decay": 0.9}
    )
    devices = [f"CPU:{i}" for i in range(n_replicas)]
    with mirrored_scope(devices) if n_replicas > 1 else nullcontext():
        model = build_classifier(
            SMALL.model_copy(update={"backbone": "resnet_tiny", "dropout": 0.0})
        )
        unfreeze(model, backbone="resnet_tiny", depth=2, batch_norm=batch_norm)
        trunk, tail = cut(model, backbone="resnet_tiny", depth=2)
        tail.get_layer("logit").kernel.assign(np.linspace(-1, 1, 256)[:, None])  # not from zeros
        step = in_replicas(TailStep(tail, params, jit_compile=False), batch_size=8)
        step.set_rate(0.01)
        labels = (np.arange(8) % 2).astype(np.float32)
        counts = [np.ones(8, np.float32), np.ones(8, np.float32), (np.arange(8) < 5) * 1.0]
        first_by_halves = _loss_by_halves(tail, trunk(random_patches(8, seed=0)), labels)
        losses = []
        with fast_input_gradients(tail):
            for number, counted in enumerate(counts):
                inputs = trunk(random_patches(8, seed=number), training=False).numpy()
                weights = np.linspace(0.5, 1.5, 8, dtype=np.float32)
                loss = step.train(inputs, labels, weights, counted.astype(np.float32))
                losses.append(float(loss))
        with step.averaged([inputs]):
            squares = sum(float(np.square(w).sum()) for w in tail.get_weights())
    return {"losses": losses, "squares": squares, "by_halves": first_by_halves}


def _loss_by_halves(tail, inputs, labels) -> float:
    """Loss of the first batch where each half has its own statistics; the tail is as before."""
    before = tail.get_weights()
    halves = [tail(inputs[part], training=True) for part in (slice(4), slice(4, 8))]
    tail.set_weights(before)
    logits = np.concatenate(halves)[:, 0].astype(np.float64)
    losses = np.logaddexp(0.0, logits) - labels * logits
    return float(np.mean(losses * np.linspace(0.5, 1.5, 8)))


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
