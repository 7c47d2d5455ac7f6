"""The parent of the workers: starts them, replaces those that die, stops them on Ctrl-C."""

import multiprocessing
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from logging import Logger
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from src.system.errors import ProjectError
from src.tuning import worker
from src.tuning.worker import Job

_LOOK_EVERY_S = 0.5
_TIME_TO_STOP_S = 60.0
_DEATHS_A_WORKER = 3


class WorkersFailed(ProjectError):
    """The workers can't go on."""


@dataclass
class _Worker:
    job: Job
    process: BaseProcess
    pipe: Connection


class Supervisor:
    """Keeps ``n_workers`` processes at work on a study."""

    def __init__(self, job: Job, n_workers: int, *, log: Logger, on_death: Callable[[], None]):
        self._jobs = [
            replace(job, worker=i, log_file=job.log_file.format(worker=i)) for i in range(n_workers)
        ]
        self._log = log
        self._on_death = on_death
        self._deaths_left = _DEATHS_A_WORKER * n_workers
        self._workers: list[_Worker] = []

    def run(self, *, is_finished: Callable[[], bool], watch: Callable[[], None]) -> None:
        """Work until ``is_finished`` or no worker has anything left to do; ``watch`` is called
        twice a second.

        Raises
        ------
        WorkersFailed
            One says what is wrong, or they die again and again.
        """
        self._workers = [_start(job) for job in self._jobs]
        try:
            while self._workers:
                time.sleep(_LOOK_EVERY_S)
                watch()
                self._replace_ended(is_finished)
            watch()
        except BaseException:
            self.stop()
            raise

    def _replace_ended(self, is_finished: Callable[[], bool]) -> None:
        for ended in [w for w in self._workers if not w.process.is_alive()]:
            ended.process.join()
            self._workers.remove(ended)
            code = ended.process.exitcode
            if code == 0:
                is_late = ended.job.deadline_s is not None and time.time() >= ended.job.deadline_s
                if not is_late and not is_finished():  # it had run as many trials as one should
                    self._workers.append(_start(ended.job))
                continue
            self._mourn(ended, code)
            if not is_finished():
                self._workers.append(_start(ended.job))

    def _mourn(self, ended: _Worker, code: int | None) -> None:
        if ended.pipe.poll():
            raise WorkersFailed(ended.pipe.recv())
        self._on_death()
        self._deaths_left -= 1
        how = (
            f"was killed by signal {-code}" if code is not None and code < 0 else f"ended ({code})"
        )
        if self._deaths_left < 0:
            raise WorkersFailed(
                f"workers die again and again, the last one {how}; is there enough memory? see "
                f"{ended.job.log_file}, and try fewer --workers"
            )
        self._log.warning(f"worker {ended.job.worker} {how}; another one takes over")

    def stop(self) -> None:
        """Ask all workers to stop, and end those that don't."""
        for each in self._workers:
            if each.process.is_alive():
                each.process.terminate()
        until = time.monotonic() + _TIME_TO_STOP_S
        for each in self._workers:
            each.process.join(max(0.0, until - time.monotonic()))
            if each.process.is_alive():
                each.process.kill()
                each.process.join()
        self._workers = []


def _start(job: Job) -> _Worker:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=worker.main, args=(job, theirs))
    process.start()
    theirs.close()
    return _Worker(job, process, ours)
