"""What benchmarks share: time and memory of a command, the runtime. Not a benchmark itself."""

import os
import resource
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from src.params import RuntimeParams, load_params
from src.paths import ROOT

_SAMPLE_EVERY_S = 0.1


@dataclass(frozen=True)
class Measured:
    """What a command took.

    Attributes
    ----------
    wall_s, cpu_s
        From the start of the process to its end; CPU time of all its processes.
    peak_bytes
        Resident memory of all its processes together, sampled ten times a second.
    """

    wall_s: float
    cpu_s: float
    peak_bytes: int


def runtime(threads: int = 0) -> RuntimeParams:
    """The default preset's runtime with so many threads (0 = one a core)."""
    default = load_params(ROOT / "presets" / "sample.yaml").runtime
    return default.model_copy(update={"threads": threads})


def run_measured(
    command: Sequence[str], *, cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> Measured:
    """Run ``command`` to its end; anything but exit status 0 ends the benchmark."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    process = subprocess.Popen(
        command, cwd=cwd, env=None if env is None else os.environ | dict(env)
    )
    peak_bytes = 0
    while process.poll() is None:
        peak_bytes = max(peak_bytes, resident_bytes(process.pid))
        time.sleep(_SAMPLE_EVERY_S)
    wall_s = time.perf_counter() - started
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Measured(wall_s, cpu_s, peak_bytes)


def resident_bytes(pid: int | None = None) -> int:
    """Resident memory of a process (None: this one) and its children."""
    pid = pid or os.getpid()
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE") + sum(resident_bytes(int(c)) for c in children)
