"""The generated patches as an archive in Kaggle's layout.

``train/<id>.tif``, ``test/<id>.tif``, ``train_labels.csv``, ``sample_submission.csv`` and
``slides.csv`` (of the labelled patches; nobody knows a test patch's slide). Stored, not compressed,
and dated 1980: the bytes depend on the seed alone, on no version of zlib and no clock.
"""

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

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from src.data.generated import Chunk, SubsetPlan, draw_chunk
from src.system.durable import replacing
from src.system.errors import ProjectError

_DATE = (1980, 1, 1, 0, 0, 0)
_UNIX, _FILE_MODE = 3, 0o100644 << 16
_CHUNKS_AHEAD = 2  # a process
_MIN_PATCHES_A_PROCESS = 200  # fewer are drawn before a second process has started


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
    """Draw both subsets in ``workers`` processes (0 = one a core) and durably write the zip.

    ``advance(n)`` is called as ``n`` more patches are in. Memory holds a few chunks of pixels a
    process and the zip's directory. The bytes don't depend on ``workers``.
    """
    n_processes = _n_processes(workers, len(train) + len(test))
    with (
        replacing(path) as temporary,
        zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive,
    ):
        for files in _encoded(chain(train.chunks(), test.chunks()), n_processes):
            for name, tiff in files:
                _add(archive, name, tiff)
            advance(len(files))
        _add(archive, "train_labels.csv", _labels_csv(train))
        _add(archive, "sample_submission.csv", _submission_csv(test))
        _add(archive, "slides.csv", _slides_csv(train))


def _encoded(chunks: Iterator[Chunk], n_processes: int) -> Iterator[list[tuple[str, bytes]]]:
    """Each chunk's files, in order, with a few chunks drawn ahead."""
    if n_processes == 1:
        yield from map(encode_chunk, chunks)
        return
    # spawn: the parent may hold threads (a progress bar, BLAS), which must not be forked
    pool = ProcessPoolExecutor(n_processes, get_context("spawn"), initializer=_start_process)
    waiting: deque[Future[list[tuple[str, bytes]]]] = deque()
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


def _start_process() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer


def _n_processes(workers: int, n_patches: int) -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(workers or cores or 1, n_patches // _MIN_PATCHES_A_PROCESS))


def encode_chunk(chunk: Chunk) -> list[tuple[str, bytes]]:
    """(name in the archive, TIFF bytes) of each patch of one chunk."""
    names = (f"{chunk.subset}/{patch_id}.tif" for patch_id in chunk.ids())
    return list(zip(names, map(encode_tiff, draw_chunk(chunk).pixels), strict=True))


def encode_tiff(pixels: NDArray[np.uint8]) -> bytes:
    """Uncompressed RGB TIFF of (h, w, 3) pixels."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="TIFF")
    return buffer.getvalue()


def _add(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    entry = zipfile.ZipInfo(name, _DATE)
    entry.create_system = _UNIX
    entry.external_attr = _FILE_MODE
    archive.writestr(entry, data)


def _labels_csv(train: SubsetPlan) -> bytes:
    labels = train.labels
    return _csv("id,label", (f"{train.patch_id(i)},{labels[i]}" for i in range(len(train))))


def _submission_csv(test: SubsetPlan) -> bytes:
    return _csv("id,label", (f"{test.patch_id(i)},0" for i in test.submission_order()))


def _slides_csv(train: SubsetPlan) -> bytes:
    lines = (f"{train.patch_id(i)},{train.slide_name(i)}" for i in range(len(train)))
    return _csv("id,slide", lines)


def _csv(header: str, lines: Iterable[str]) -> bytes:
    return "\n".join((header, *lines, "")).encode()
