"""Progress of long work: a bar with the time left on a terminal, otherwise a line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from logging import Logger

from rich import progress as bars

_LINE_EVERY_S = 15.0

Advance = Callable[[int], None]


@contextmanager
def progress(task: str, total: int, unit: str, log: Logger) -> Iterator[Advance]:
    """Yield ``advance(n)``, to be called as ``n`` more of ``total`` units are done."""
    if not sys.stdout.isatty():
        yield _lines(task, total, unit, log)
        return
    columns = (
        bars.TextColumn("{task.description}"),
        bars.BarColumn(),
        bars.MofNCompleteColumn(),
        bars.TextColumn(unit),
        bars.TimeElapsedColumn(),
        bars.TextColumn("left"),
        bars.TimeRemainingColumn(),
    )
    with bars.Progress(*columns, transient=True) as bar:
        handle = bar.add_task(task, total=total)
        yield lambda n: bar.advance(handle, n)


def _lines(task: str, total: int, unit: str, log: Logger) -> Advance:
    started = last = time.monotonic()
    done = 0

    def advance(n: int) -> None:
        nonlocal done, last
        done += n
        now = time.monotonic()
        if now - last >= _LINE_EVERY_S and done < total:
            last = now
            rate = done / (now - started)
            eta_s = (total - done) / rate if rate else float("inf")
            speed = f"{rate:,.0f}/s" if rate >= 1 or not rate else f"{1 / rate:,.0f} s each"
            log.info(f"{task} {done:,} of {total:,} {unit}, {speed}, {eta_s:,.0f} s left")

    return advance
