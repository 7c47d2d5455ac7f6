"""Trains a few steps on one device or on two; ``python -m tests.model.two_replicas <1|2> <mode>``.

Prints the loss of each step and the weights' sum of squares. Virtual CPUs have to be made before
TensorFlow starts, hence a process of its own.
"""

import json
import sys
from contextlib import nullcontext

import numpy as np


def main(n_replicas: int, batch_norm: str) -> None:
    """Three steps, the last of them on a batch that is partly padding."""
    import keras
    import tensorflow as tf

    from src.model.classifier import build_classifier
    from src.model.fast_gradient import fast_input_gradients
    from src.model.freezing import cut, unfreeze
    from src.model.replicas import in_replicas, mirrored_scope
    from src.model.step import TailStep
    from src.params import load_params
    from src.paths import ROOT
    from tests.model.support import SMALL, random_patches

    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
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
        step = in_replicas(TailStep(tail, params, jit_compile=False), batch_size=8)
        step.set_rate(0.01)
        labels = (np.arange(8) % 2).astype(np.float32)
        counts = [np.ones(8, np.float32), np.ones(8, np.float32), (np.arange(8) < 5) * 1.0]
        losses = []
        with fast_input_gradients(tail):
            for number, counted in enumerate(counts):
                inputs = trunk(random_patches(8, seed=number), training=False).numpy()
                weights = np.linspace(0.5, 1.5, 8, dtype=np.float32)
                loss = step.train(inputs, labels, weights, counted.astype(np.float32))
                losses.append(float(loss))
        with step.averaged():
            squares = sum(float(np.square(w).sum()) for w in tail.get_weights())
    print(json.dumps({"losses": losses, "squares": squares}))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
