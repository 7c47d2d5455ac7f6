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
from src.tuning.budget import MOST_DEATHS
from src.tuning.worker import Job

_LOOK_EVERY_S = 0.5
_TIME_TO_STOP_S = 60.0
# without a trial's end between them; the trial that kills its workers is given up before
_DEATHS_A_WORKER = MOST_DEATHS + 1

Main = Callable[[Job, Connection], None]


class WorkersFailed(ProjectError):
    """The workers can't go on."""


@dataclass
class _Worker:
    job: Job
    process: BaseProcess
    pipe: Connection


class Supervisor:
    """Keeps ``n_workers`` processes at work on a study.

    Parameters
    ----------
    on_death : called after each, to close what the dead left open
    main : what a worker does
    """

    def __init__(
        self,
        job: Job,
        n_workers: int,
        *,
        log: Logger,
        on_death: Callable[[], None],
        main: Main = worker.main,
    ) -> None:
        self._jobs = [replace(job, worker=i) for i in range(n_workers)]
        self._log = log
        self._on_death = on_death
        self._main = main
        self._n_deaths = 0
        self._n_ended = 0
        self._workers: list[_Worker] = []

    def run(
        self,
        *,
        is_finished: Callable[[], bool],
        n_ended: Callable[[], int],
        watch: Callable[[], None],
    ) -> None:
        """Work until ``is_finished`` or no worker has anything left to do; ``watch`` is called
        twice a second. ``n_ended`` counts the trials that are over: while it grows, workers may
        die.

        Raises
        ------
        WorkersFailed
            One says what is wrong, or they die again and again.
        """
        self._n_ended = n_ended()
        try:
            for job in self._jobs:
                self._start(job)
            while self._workers:
                time.sleep(_LOOK_EVERY_S)
                watch()
                self._replace_ended(is_finished, n_ended)
            watch()
        except BaseException:
            self.stop()
            raise

    def _start(self, job: Job) -> None:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=self._main, args=(job, theirs))
        process.start()
        theirs.close()
        self._workers.append(_Worker(job, process, ours))

    def _replace_ended(self, is_finished: Callable[[], bool], n_ended: Callable[[], int]) -> None:
        for ended in [w for w in self._workers if not w.process.is_alive()]:
            ended.process.join()
            self._workers.remove(ended)
            code, last_words = ended.process.exitcode, _last_words(ended.pipe)
            if code != 0:
                self._mourn(ended.job, code, last_words, n_ended())
            if (
                not ended.job.is_late() and not is_finished()
            ):  # or it had run as many trials as one should
                self._start(ended.job)

    def _mourn(self, job: Job, code: int | None, last_words: str | None, n_ended: int) -> None:
        if last_words is not None:
            raise WorkersFailed(last_words)
        self._on_death()
        if n_ended > self._n_ended:
            self._n_ended, self._n_deaths = n_ended, 0
        self._n_deaths += 1
        how = (
            f"was killed by signal {-code}" if code is not None and code < 0 else f"ended ({code})"
        )
        if self._n_deaths > _DEATHS_A_WORKER * len(self._jobs):
            raise WorkersFailed(
                f"workers die again and again, the last one {how}; is there enough memory? see "
                f"{job.log_file(str(job.worker))}, and try fewer --workers"
            )
        self._log.warning(f"worker {job.worker} {how}; another one takes over")

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


def _last_words(pipe: Connection) -> str | None:
    """What a worker sent before it ended; None where it was killed: its pipe is at its end."""
    try:
        return str(pipe.recv()) if pipe.poll() else None
    except EOFError:
        return None
    finally:
        pipe.close()
