"""One place that starts TensorFlow: threads, seeds, deterministic kernels, and a record of them."""

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib.metadata import version

Environment = dict[str, str | int | float | bool]


def start_tensorflow(*, seed: int, threads: int, quiet: bool) -> Environment:
    """Import TensorFlow with deterministic kernels and ``threads`` threads (0 = one a core).

    Returns what a reader needs in order to repeat the run on this kind of machine.
    """
    os.environ["KERAS_BACKEND"] = "tensorflow"
    if quiet:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with _silent_stderr() if quiet else nullcontext():
        import keras
        import tensorflow as tf

        n_gpus = len(tf.config.list_physical_devices("GPU"))
    n_threads = threads or os.cpu_count() or 1
    try:
        tf.config.threading.set_intra_op_parallelism_threads(n_threads)
        tf.config.threading.set_inter_op_parallelism_threads(n_threads)
    except RuntimeError:
        # already running in this process: threads are what the first caller asked for
        n_threads = tf.config.threading.get_intra_op_parallelism_threads()
    tf.config.experimental.enable_op_determinism()
    keras.utils.set_random_seed(seed)
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "tensorflow": version("tensorflow"),
        "keras": version("keras"),
        "numpy": version("numpy"),
        "threads": n_threads,
        "onednn": os.environ.get("TF_ENABLE_ONEDNN_OPTS", "default"),
        "gpus": n_gpus,
        "deterministic": True,
    }


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """Send file descriptor 2 nowhere: native code says that there is no GPU, whatever its level."""
    saved = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(nowhere)
