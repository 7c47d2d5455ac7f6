"""One place that starts TensorFlow: threads, seeds, deterministic kernels, and a record of them."""

import gc
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib.metadata import version
from pathlib import Path

from src.params import RuntimeParams
from src.system.errors import ProjectError

_ONEDNN = "TF_ENABLE_ONEDNN_OPTS"

Environment = dict[str, str | int | float | bool]


class DeviceMissing(ProjectError):
    """``runtime.device`` asks for a GPU that TensorFlow doesn't see."""


def start_tensorflow(runtime: RuntimeParams, *, seed: int, tf32: bool = True) -> Environment:
    """Import TensorFlow with the threads and on the devices that ``runtime`` asks for.

    Returns what a reader needs in order to repeat the run on this kind of machine. oneDNN is turned
    on unless ``TF_ENABLE_ONEDNN_OPTS`` says otherwise: by itself TensorFlow decides by the
    processor, and with it a trunk is half as fast again and its bits don't depend on the threads.
    ``tf32`` allows float32 products on 10 bits of mantissa (GPUs from Ampere on): several times
    faster, and good enough for training.

    Raises
    ------
    DeviceMissing
        No GPU is there, and ``runtime.device`` is ``gpu`` or ``gpus``.
    """
    os.environ["KERAS_BACKEND"] = "tensorflow"
    is_first = "tensorflow" not in sys.modules
    if is_first:  # read when TensorFlow is imported
        os.environ.setdefault(_ONEDNN, "1")
    if runtime.quiet_tensorflow:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with _silent_stderr() if runtime.quiet_tensorflow else nullcontext():
        import keras
        import tensorflow as tf

        n_gpus = _choose_gpus(runtime.device)
    if is_first:
        gc.freeze()  # what was imported stays: later collections needn't look at it
    n_threads = runtime.threads or usable_cores()
    try:
        tf.config.threading.set_intra_op_parallelism_threads(n_threads)
        tf.config.threading.set_inter_op_parallelism_threads(n_threads)
    except RuntimeError:
        # already running in this process: threads are what the first caller asked for
        n_threads = tf.config.threading.get_intra_op_parallelism_threads()
    if runtime.deterministic:
        tf.config.experimental.enable_op_determinism()
    tf.config.experimental.enable_tensor_float_32_execution(tf32)
    keras.utils.set_random_seed(seed)
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "tensorflow": version("tensorflow"),
        "keras": version("keras"),
        "numpy": version("numpy"),
        "threads": n_threads,
        "onednn": _onednn(),
        "gpus": n_gpus,
        "tf32": tf32,
        "deterministic": runtime.deterministic,
    }


def start_scoring(runtime: RuntimeParams) -> None:
    """Start TensorFlow for scores: without TF32, so that they are the same wherever they are made.

    For every command that scores, verifies or serves, ``evaluate`` included.
    """
    start_tensorflow(runtime, seed=0, tf32=False)  # nothing random happens: any seed will do


def _onednn() -> str:
    """``on`` or ``off``; ``unknown`` where TensorFlow was imported before anybody chose."""
    value = os.environ.get(_ONEDNN)
    if value is None:
        return "unknown"
    return "on" if value.lower() in ("1", "true") else "off"


def usable_cores() -> int:
    """Cores that this process may use: fewer than the machine has where they are assigned."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _processor() -> str:
    """The processor's model, whose kernels decide the last bits; ``unknown`` where none is told."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def _choose_gpus(device: str) -> int:
    """Hide the GPUs that are not asked for; how many are left."""
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    if device in ("gpu", "gpus") and not gpus:
        raise DeviceMissing(
            f"no GPU found (got runtime.device: {device}); set it to auto or cpu, or install the "
            "gpu extra: pip install '.[gpu]'"
        )
    chosen = {"cpu": [], "gpus": gpus}.get(device, gpus[:1])
    if chosen != gpus:
        tf.config.set_visible_devices(chosen, "GPU")
    return len(chosen)


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
