"""Which process writes a run, so that a later one can tell whether it still lives."""

import os
import platform
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ProcessIdentity:
    """A process on a host. ``started`` tells it from a later one that got the same pid."""

    host: str
    pid: int
    started: str


def this_process() -> ProcessIdentity:
    """The identity of the process that calls."""
    return ProcessIdentity(platform.node(), os.getpid(), _started(os.getpid()) or "unknown")


def is_known_dead(process: ProcessIdentity) -> bool:
    """Whether the process ran on this host and no longer does; False where that can't be told."""
    if process.host != platform.node() or process.started == "unknown":
        return False
    return _started(process.pid) != process.started


def is_dead_since_boot(process: ProcessIdentity) -> bool:
    """Whether the process ran here since the machine started, and no longer does.

    Unlike :func:`is_known_dead`, False for a process of another boot: it was either lost with the
    reboot, or belongs to another machine of the same name, where it may be alive.
    """
    boot = (_started(os.getpid()) or "unknown").partition(":")[0]
    return process.started.partition(":")[0] == boot and is_known_dead(process)


def _started(pid: int) -> str | None:
    """Start time in clock ticks since boot, with the boot's id; None if there's no such process.

    Read from Linux' /proc; elsewhere None, and runs of killed processes stay RUNNING.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()  # the name before it may hold spaces and brackets
    is_zombie = fields[0] == "Z"
    return None if is_zombie else f"{boot}:{fields[19]}"
