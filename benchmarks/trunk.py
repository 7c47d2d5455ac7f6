"""The frozen trunk's forward pass, folded or not, with and without oneDNN.

``python -m benchmarks.trunk``: patches/s of processor time, as if all cores were free, in brackets
of the clock; medians of alternated repeats, and whether 1 and 2 threads give the same bits. The
whole backbone at 96 px (depth 0), batches of 64 random patches.
"""

import hashlib
import json
import os
import statistics
import subprocess
import sys
import time
from typing import Annotated, Any

import numpy as np
import typer

from benchmarks.measured import runtime
from src.params import load_params
from src.paths import ROOT
from src.system.determinism import start_tensorflow, usable_cores

N = 64


def main(
    repeats: int = 5,
    *,
    child: Annotated[bool, typer.Option(hidden=True)] = False,
    threads: Annotated[int, typer.Option(hidden=True)] = 0,
) -> None:
    """Print one line for each of oneDNN on and off."""
    if child:
        print(json.dumps(_measured(repeats, threads)))
        return
    for onednn in ("1", "0"):
        one, all_cores = (_child(onednn, repeats, threads) for threads in (1, usable_cores()))
        same = "the same bits as" if one["bits"] == all_cores["bits"] else "other bits than"
        rates = ", ".join(f"{name} {rate}" for name, rate in all_cores["rates"].items())
        print(f"oneDNN {'on' if onednn == '1' else 'off'}: {rates} patches/s; {same} on 1 thread")


def _child(onednn: str, repeats: int, threads: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.trunk", "--child", f"--repeats={repeats}"]
    environment = os.environ | {"TF_ENABLE_ONEDNN_OPTS": onednn}
    done = subprocess.run(
        [*command, f"--threads={threads}"], env=environment, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def _measured(repeats: int, threads: int) -> dict[str, Any]:
    start_tensorflow(runtime(threads), seed=1)
    from src.model.classifier import build_classifier
    from src.model.folding import folded
    from src.model.freezing import cut
    from src.model.inputs import trunk_forward

    params = load_params(ROOT / "presets" / "sample.yaml").model
    model = build_classifier(params.model_copy(update={"centre_crop": None}))
    trunk, _ = cut(model, backbone=params.backbone, depth=0)
    ways = {"folded": trunk_forward(folded(trunk)), "unfolded": trunk_forward(trunk)}
    patches = np.random.default_rng(0).integers(0, 256, (N, 96, 96, 3), dtype=np.uint8)
    bits = {name: hashlib.sha256(way(patches).tobytes()).hexdigest() for name, way in ways.items()}
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            cpu, wall = time.process_time(), time.perf_counter()
            way(patches)
            seconds[name].append((time.process_time() - cpu, time.perf_counter() - wall))
    rates = {}
    for name, times in seconds.items():
        cpu_s, wall_s = (statistics.median(column) for column in zip(*times, strict=True))
        rates[name] = f"{usable_cores() * N / cpu_s:.0f} ({N / wall_s:.0f})"
    return {"rates": rates, "bits": bits}


if __name__ == "__main__":
    typer.run(main)
