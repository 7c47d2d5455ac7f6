"""The generated patches as an archive in Kaggle's layout.

``train/<id>.tif``, ``test/<id>.tif``, ``train_labels.csv``, ``sample_submission.csv`` and
``slides.csv`` (of the labelled patches; nobody knows a test patch's slide). Stored, not compressed,
and dated 1980: the bytes depend on the seed alone, on no version of zlib and no clock.
"""

from __future__ import annotations

import io
import os
import signal
import zipfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import chain
from multiprocessing import get_context
from pathlib import Path

from PIL import Image

from src.drawing.patches import draw_chunk
from src.drawing.plan import ORDER, SubsetPlan
from src.system.durable import replacing
from src.system.errors import ProjectError

_CHUNKS_AHEAD = 2  # per process
_MIN_PATCHES_PER_PROCESS = 400  # fewer are drawn before a second process has started

Files = list[tuple[str, bytes]]


class SampleError(ProjectError):
    """The generated archive can't be written."""


def write_archive(
    path: Path,
    *,
    train: SubsetPlan,
    test: SubsetPlan,
    workers: int = 0,
    advance: Callable[[int], object] = lambda _: None,
) -> None:
    """Draw both subsets in ``workers`` processes (0 = one per core) and durably write the zip.

    ``advance(n)`` is called when ``n`` more patches are in. Memory holds a few chunks of pixels per
    process and the zip's directory. The bytes don't depend on ``workers``.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    most = (len(train) + len(test)) // _MIN_PATCHES_PER_PROCESS
    n_processes = max(1, min(workers or cores or 1, most))
    ids, test_ids = train.ids(), test.ids()
    # the order of sample_submission.csv is that of neither files nor ids, as on Kaggle
    order = test.generator(ORDER).permutation(len(test))
    with (
        replacing(path) as temporary,
        zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive,
    ):
        for files in _encoded(chain(train.chunks(), test.chunks()), n_processes):
            for name, tiff in files:
                archive.writestr(zipfile.ZipInfo(name), tiff)  # of 1980: no clock in the bytes
            advance(len(files))
        tables = {
            "train_labels.csv": _csv("label", ids, train.labels),
            "sample_submission.csv": _csv("label", [test_ids[i] for i in order], [0] * len(test)),
            "slides.csv": _csv("slide", ids, train.slide_names()),
        }
        for name, table in tables.items():
            archive.writestr(zipfile.ZipInfo(name), table)


def _encoded(chunks: Iterator[SubsetPlan], n_processes: int) -> Iterator[Files]:
    """Each chunk's files, in order, with a few chunks drawn ahead."""
    if n_processes == 1:
        yield from map(encode_chunk, chunks)
        return
    # spawn: the parent may hold threads (a progress bar, BLAS), which must not be forked.
    # SIGINT is ignored in the children: Ctrl-C is the parent's to answer
    pool = ProcessPoolExecutor(
        n_processes,
        get_context("spawn"),
        initializer=signal.signal,
        initargs=(signal.SIGINT, signal.SIG_IGN),
    )
    waiting: deque[Future[Files]] = deque()
    try:
        for chunk in chunks:
            waiting.append(pool.submit(encode_chunk, chunk))
            if len(waiting) > _CHUNKS_AHEAD * n_processes:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise SampleError(
            "a drawing process was killed, perhaps for lack of memory; "
            "run again, with fewer runtime.workers if it happens again"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def encode_chunk(chunk: SubsetPlan) -> Files:
    """(name in the archive, bytes of an uncompressed RGB TIFF) of each patch of one chunk."""
    files = []
    for patch_id, pixels in zip(chunk.ids(), draw_chunk(chunk).pixels, strict=True):
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, format="TIFF")
        files.append((f"{chunk.subset}/{patch_id}.tif", buffer.getvalue()))
    return files


def _csv(column: str, ids: list[str], values: Iterable[object]) -> str:
    rows = (f"{key},{value}" for key, value in zip(ids, values, strict=True))
    return "\n".join((f"id,{column}", *rows, ""))
