"""How fast patches are drawn, on one process and on every core, and in how much memory.

Run from the root: ``python -m benchmarks.sample``. Target: 2,000 patches in 30 s on 2 cores.
"""

import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

N_TRAIN, N_TEST = 1600, 400


def main() -> None:
    """Print the table; each row is measured in a process of its own."""
    print(f"{'processes':>9}  {'wall s':>6}  {'patches/s':>9}  {'peak MiB, parent':>16}  child")
    for workers in sorted({1, len(os.sched_getaffinity(0))}):
        command = [sys.executable, "-m", "benchmarks.sample", str(workers)]
        subprocess.run(command, check=True)


def measure(workers: int) -> None:
    """Write the default archive to a temporary folder and print one row."""
    from src.data.generated import plan_subset
    from src.data.generated_archive import write_archive

    train = plan_subset(seed=1, subset="train", n_patches=N_TRAIN, n_slides=20)
    test = plan_subset(seed=1, subset="test", n_patches=N_TEST, n_slides=5)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        write_archive(Path(folder) / "sample.zip", train=train, test=test, workers=workers)
    wall_s = time.perf_counter() - started
    parent, child = (
        resource.getrusage(who).ru_maxrss / 1024
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    rate = (N_TRAIN + N_TEST) / wall_s
    print(f"{workers:>9}  {wall_s:>6.1f}  {rate:>9.0f}  {parent:>16.0f}  {child:.0f}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        measure(int(sys.argv[1]))
    else:
        main()
