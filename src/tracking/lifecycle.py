"""The life of a run, whatever it holds: begun, ended as what it was, found dead, and written to.

No active run and no global state: every call names its run. Each run says which process writes it,
so that a later one can tell whether that process is still alive.
"""

from __future__ import annotations

import os
import platform
import signal
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from matplotlib.figure import Figure
from mlflow.entities import Metric, Run, RunTag
from mlflow.exceptions import MlflowException

from src.tracking.records import WORK_KEY
from src.tracking.store import Store, connect, reporting

METRICS_A_BATCH = 1000  # MLflow's limits
PARAMS_A_BATCH = 100

_PROCESS_TAGS = ("hcd.host", "hcd.pid", "hcd.started")
_LONGEST_TAG = 5000


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


@contextmanager
def open_run(
    stage: str, name: str, tags: Mapping[str, str], *, work_key: str = ""
) -> Iterator[tuple[Store, str]]:
    """Begin a run and end it as FINISHED, FAILED (an error) or KILLED (Ctrl-C, SIGTERM).

    Yields the store and the run's id. Runs of this stage that are RUNNING although their process is
    gone (kill -9) are ended first. With a ``work_key``, the newest run of that work is opened
    again instead, so that work done in several goes is one run.

    Raises
    ------
    TrackingError
        The store can't be reached, or doesn't take the start or the end of the run.
    """
    store = connect()
    with reporting("did not take a new run"):
        close_orphans(store, stage)
        run_id = _reopened(store, work_key, tags) or begin(store, name, tags)
    with ending(store, run_id), _sigterm_as_exit():
        yield store, run_id


def begin(store: Store, name: str, tags: Mapping[str, str]) -> str:
    """Create a run that says which process writes it; return its id."""
    all_tags = {**tags, **process_tags()}
    run = store.client.create_run(store.experiment_id, run_name=name, tags=all_tags)
    return str(run.info.run_id)


def process_tags() -> dict[str, str]:
    """Which process writes a run."""
    process = asdict(this_process())
    return dict(zip(_PROCESS_TAGS, map(str, process.values()), strict=True))


def _reopened(store: Store, work_key: str, tags: Mapping[str, str]) -> str | None:
    """The newest run of this work, RUNNING again and written by this process; None if none.

    Its tags become those of now: the commit may be a newer one that changed nothing here.
    """
    if not work_key:
        return None
    found = store.client.search_runs(
        [store.experiment_id],
        filter_string=f"tags.{WORK_KEY} = '{work_key}' and attributes.status != 'RUNNING'",
        order_by=["attributes.start_time DESC"],
        max_results=1,
    )
    if not found:
        return None
    run_id = str(found[0].info.run_id)
    set_tags(store, run_id, {**tags, **process_tags()})
    store.client.update_run(run_id, status="RUNNING")
    return run_id


def close_orphans(store: Store, stage: str) -> list[str]:
    """End as KILLED the stage's RUNNING runs whose process on this host is gone; return their ids.

    A run ends when it last logged, so that its duration isn't the time until someone noticed.
    """
    running = store.client.search_runs(
        [store.experiment_id],
        filter_string=f"attributes.status = 'RUNNING' and tags.stage = '{stage}'",
    )
    orphans = [run for run in running if _is_orphan(run)]
    for run in orphans:
        store.client.set_terminated(
            run.info.run_id, status="KILLED", end_time=_last_logged_ms(store, run)
        )
    return [str(run.info.run_id) for run in orphans]


def _is_orphan(run: Run) -> bool:
    host, pid, started = (run.data.tags.get(name) for name in _PROCESS_TAGS)
    if host is None or pid is None or started is None:
        return False
    return is_known_dead(ProcessIdentity(host, int(pid), started))


def _last_logged_ms(store: Store, run: Run) -> int:
    times = [int(run.info.start_time)]
    for name in run.data.metrics:
        history = store.client.get_metric_history(run.info.run_id, name)
        times += [int(metric.timestamp) for metric in history]
    return max(times)


@contextmanager
def ending(store: Store, run_id: str) -> Iterator[None]:
    """End the run as FINISHED, or as FAILED or KILLED where the block is left by an error."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        _end_quietly(store, run_id, "KILLED")
        raise
    except BaseException:
        _end_quietly(store, run_id, "FAILED")
        raise
    with reporting(f"did not take the end of run {run_id}"):
        store.client.set_terminated(run_id, status="FINISHED")


def _end_quietly(store: Store, run_id: str, status: str) -> None:
    with suppress(MlflowException):  # the error that ended the run is the one to report
        store.client.set_terminated(run_id, status=status)


@contextmanager
def _sigterm_as_exit() -> Iterator[None]:
    """Let SIGTERM (a scheduler, ``docker stop``) unwind the stack, so that the run is ended."""
    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield  # whoever handles it already decides what it means
        return

    def exit_now(signum: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001
        raise SystemExit(128 + signum)

    signal.signal(signal.SIGTERM, exit_now)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def log_pictures(store: Store, run_id: str, figures: Mapping[str, Figure]) -> None:
    """Log figures under ``pictures/``, as PNG where the name has no ending."""
    for name, figure in figures.items():
        file_name = name if Path(name).suffix else f"{name}.png"
        store.client.log_figure(run_id, figure, f"pictures/{file_name}")


def log_metrics(store: Store, run_id: str, values: Mapping[str, float]) -> None:
    """Log numbers that belong to the run as a whole."""
    for batch in batches(metrics_at(values, step=0), METRICS_A_BATCH):
        store.client.log_batch(run_id, metrics=batch)


def metrics_at(values: Mapping[str, float], *, step: int) -> list[Metric]:
    """Numbers as MLflow's metrics of now."""
    now_ms = time.time_ns() // 1_000_000
    return [Metric(name, float(value), now_ms, step) for name, value in values.items()]


def set_tags(store: Store, run_id: str, tags: Mapping[str, str]) -> None:
    """Set tags, cut to the longest that MLflow takes."""
    entities = [RunTag(name, value[:_LONGEST_TAG]) for name, value in tags.items()]
    store.client.log_batch(run_id, tags=entities)


def batches(items: Sequence[Any], size: int) -> Iterable[list[Any]]:
    """``items`` in pieces of ``size``."""
    return (list(items[start : start + size]) for start in range(0, len(items), size))
