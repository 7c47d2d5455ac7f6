"""What it costs a pass to keep other depths' activations: ``python -m benchmarks.shared_pass``.

ResNet50 of the sample preset, generated patches, one view; each row fills an empty cache.
"""

import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from typer import run

from benchmarks.measured import runtime
from benchmarks.training_ways import generate

DEPTHS = [(0,), (0, 1, 2, 3), (0, 1, 2, 3, 6, 9)]


def main(patches: int = 640, repeats: int = 2) -> None:
    """Print the best time of ``repeats`` for each set of depths."""
    from src.model.boundary import boundary_at
    from src.model.classifier import build_classifier
    from src.model.frozen import FrozenBackbone
    from src.params import load_params
    from src.paths import ROOT
    from src.system.determinism import start_tensorflow

    environment = start_tensorflow(runtime(os.cpu_count() or 1), seed=1)
    params = load_params(ROOT / "presets" / "sample.yaml")
    classifier = build_classifier(params.model)
    about: dict[str, Any] = {
        "backbone": params.model.backbone,
        "cache_params": params.cache,
        "environment": environment,
    }
    own = boundary_at(0, classifier, **about)
    pixels = generate(patches, 8).train
    table = Table("depths", "kB beside", "wall s", "patches/s")
    for depths in DEPTHS:
        frozen = FrozenBackbone(classifier, depths=depths, **about)
        frozen.forward(depths)(pixels.pixels[:64])  # compiled
        wall_s = min(_fill(own, frozen, pixels) for _ in range(repeats))
        n_bytes = sum(b.patch_bytes for depth, b in frozen.boundaries.items() if depth)
        row = (str(depths), f"{n_bytes / 1000:.0f}", f"{wall_s:.2f}", f"{patches / wall_s:.0f}")
        table.add_row(*row)
    Console().print(table)


def _fill(own: Any, frozen: Any, patches: Any) -> float:
    from src.model.cache import ActivationCache
    from src.model.trunk import Trunk
    from src.system.log import get_logger

    log = get_logger("benchmark")
    with (
        tempfile.TemporaryDirectory(prefix="hcd-") as folder,
        ActivationCache(Path(folder), max_bytes=10**10, log=log) as cache,
    ):
        trunk = Trunk(own, depth=0, cache=cache, log=log, frozen=frozen)
        inputs = trunk.inputs(patches, views=1, passes=1)
        began = time.perf_counter()
        inputs.prepare(np.zeros(len(patches), np.int64))
        return time.perf_counter() - began


if __name__ == "__main__":
    run(main)
