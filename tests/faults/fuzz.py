"""Mutated TIFFs, tables and zips: each must end in a sound result or in one of our errors.

``python -m tests.faults.fuzz --seconds 60``; a failure prints how to run that one case again. A
case is a pure function of its target and number. Each may take a second of processor time, or it is
cut off, and the whole process 600 MB more than it starts with: whoever asks for more has failed,
even if the decoder then calls the file corrupt. Of every target some cases must be accepted and
some refused, or the mutations test nothing.
"""

import argparse
import faulthandler
import functools
import logging
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from src.data import packing
from src.data.images import decode_tiff
from src.data.inventory import parse_labels, parse_slides, parse_submission_ids
from src.system.durable import verify_folder
from src.system.errors import ProjectError
from tests.data.archives import ingest, patch_id, pixels_of, saved, tiff, tiny_files, write_zip

MAX_CASE_S = 1.0
MAX_HANG_S = 60.0  # of wall time, where code written in C doesn't come back
MIN_CASES = 10  # of which some are accepted, some refused
MAX_EXTRA_BYTES = 600 << 20

Random = np.random.Generator
_EXTREMES = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 2**63, 2**64 - 1)
_TEXTS = (b",", b'"', b"\n", b"\r\n", b"\0", b"\xef\xbb\xbf", b";", b"-1", b"1.0", b"../", b"nan",
          b"\xd9\xa1", b"\xff\xfe", b"a" * 5000, b"=1+1", b" ")  # fmt: skip


class Unsound(Exception):
    """A result that isn't one."""


class TooMuch(BaseException):
    """More time or memory than a case may take; no decoder's ``except Exception`` holds it."""


def main() -> None:
    """Run cases of every target in turn until the time is up, or one case."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--case", help="target:number, to run one again")
    arguments = parser.parse_args()
    logging.disable(logging.CRITICAL)
    packing.DECODERS = {**packing.DECODERS, "tiff": decode_within_bounds}
    limit = _address_space() + MAX_EXTRA_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    if arguments.case:
        target, number = arguments.case.split(":")
        run_case(target, int(number))
        return
    deadline = time.monotonic() + arguments.seconds
    outcomes = dict.fromkeys(TARGETS, 0)
    accepted = dict.fromkeys(TARGETS, 0)
    number = 0
    while time.monotonic() < deadline:
        for target, (_, per_round) in TARGETS.items():
            for _ in range(per_round):
                number += 1
                outcomes[target] += 1
                accepted[target] += _checked(target, number)
    for target, n in outcomes.items():
        sys.stdout.write(f"{target}: {n:,} cases, {accepted[target]:,} accepted\n")
        if n >= MIN_CASES and not 0 < accepted[target] < n:
            sys.exit(f"{target}: {accepted[target]} of {n} accepted; neither all nor none may be")


def _checked(target: str, number: int) -> bool:
    try:
        return run_case(target, number)
    except (Exception, TooMuch):
        traceback.print_exc()
        sys.exit(f"again: python -m tests.faults.fuzz --case {target}:{number}")


def run_case(target: str, number: int) -> bool:
    """Whether the mutated input was accepted; anything but a ProjectError gets out."""
    attempt, _ = TARGETS[target]
    try:
        with limited_time():
            attempt(np.random.default_rng([number, *target.encode()]))
    except ProjectError as error:
        if not str(error).strip():
            raise Unsound("an error without a message") from error
        return False
    return True


@contextmanager
def limited_time() -> Iterator[None]:
    """Cut off what takes more than a second of processor time, or hangs."""

    def stop(signum: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001
        raise TooMuch(f"over {MAX_CASE_S} s of processor time")

    before = signal.signal(signal.SIGPROF, stop)
    faulthandler.dump_traceback_later(MAX_HANG_S, exit=True, file=sys.__stderr__)
    signal.setitimer(signal.ITIMER_PROF, MAX_CASE_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGPROF, before)


def decode_within_bounds(data: bytes) -> NDArray[np.uint8]:
    """``decode_tiff``, which calls a file corrupt whose tags ask for more memory than there is."""
    try:
        return decode_tiff(data)
    except ProjectError as error:
        if isinstance(error.__cause__, MemoryError):
            raise TooMuch(f"over {MAX_EXTRA_BYTES >> 20} MB") from error
        raise


def fuzz_tiff(rng: Random) -> None:
    """One image; the header is hit more often than the pixels."""
    seeds = _tiff_seeds()
    data = seeds[rng.integers(len(seeds))]
    near = int(rng.choice([8, 200, 400, len(data)]))
    pixels = decode_within_bounds(_mutated(data, rng, near=near))
    if pixels.shape != (96, 96, 3) or pixels.dtype != np.uint8:
        raise Unsound(f"{pixels.shape} {pixels.dtype}")


def fuzz_table(rng: Random) -> None:
    """Each parser on each table, on its own most often."""
    files = tiny_files()
    slides = "".join(f"{patch_id(n)},s{n % 2}\n" for n in range(1, 7)).encode()
    seeds = (files["train_labels.csv"], files["sample_submission.csv"], b"id,slide\n" + slides)
    which = int(rng.integers(3))
    data = _mutated_text(seeds[which], rng)
    parsers = (parse_labels, parse_submission_ids, parse_slides)
    parse = parsers[which if rng.random() < 0.7 else rng.integers(3)]
    if not all(len(patch_id) == 40 for patch_id in parse(data)):
        raise Unsound("an id that is none")


def fuzz_zip(rng: Random) -> None:
    """A whole ingest; the directory at the end is hit more often than the members."""
    with tempfile.TemporaryDirectory() as folder:
        archive = write_zip(Path(folder) / "a.zip", tiny_files())
        data = archive.read_bytes()
        n_near = int(rng.choice([22, 1000, len(data)]))
        archive.write_bytes(_mutated(data[::-1], rng, near=n_near)[::-1])
        _ingest(archive, Path(folder) / "out", max_bad=int(rng.integers(3)))


def fuzz_members(rng: Random) -> None:
    """A sound zip whose members are mutated."""
    files = tiny_files()
    name = sorted(files)[rng.integers(len(files))]
    mutate = _mutated_text if name.endswith(".csv") else _mutated
    files[name] = mutate(files[name], rng)
    with tempfile.TemporaryDirectory() as folder:
        archive = write_zip(Path(folder) / "a.zip", files)
        _ingest(archive, Path(folder) / "out", max_bad=int(rng.integers(3)))


def _ingest(archive: Path, out: Path, max_bad: int) -> None:
    try:
        report = ingest(archive, out, max_bad=max_bad)
    except ProjectError:
        if out.exists():
            raise Unsound("half an ingest was left behind") from None
        raise
    verify_folder(out)
    if len(report["quarantined"]) > max_bad:
        raise Unsound("more quarantined than allowed")


def _mutated(data: bytes, rng: Random, near: int | None = None) -> bytes:
    """``data`` after none to four mutations, mostly within the first ``near`` bytes."""
    changed = bytearray(data)
    for _ in range(rng.integers(5)):
        at = int(rng.integers(max(1, min(near or len(changed), len(changed)))))
        kind = rng.integers(6)
        if kind == 0 and changed:
            changed[min(at, len(changed) - 1)] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            width = int(rng.choice([1, 2, 4, 8]))
            value = _EXTREMES[rng.integers(len(_EXTREMES))] % 256**width
            changed[at : at + width] = value.to_bytes(width, "little")
        elif kind == 2:
            del changed[at:]
        elif kind == 3:
            del changed[at : at + int(rng.integers(1, 64))]
        elif kind == 4:
            changed[at:at] = rng.bytes(int(rng.integers(1, 64)))
        else:
            source = int(rng.integers(len(changed) + 1))
            piece = changed[source : source + int(rng.integers(1, 64))]
            changed[at : at + len(piece)] = piece
    return bytes(changed)


def _mutated_text(data: bytes, rng: Random) -> bytes:
    if rng.random() < 0.4:
        return _mutated(data, rng)
    changed = bytearray(data)
    for _ in range(rng.integers(1, 4)):
        at = int(rng.integers(len(changed) + 1))
        text = _TEXTS[rng.integers(len(_TEXTS))]
        changed[at : at + int(rng.integers(2)) * len(text)] = text
    return bytes(changed)


@functools.cache
def _tiff_seeds() -> list[bytes]:
    image = Image.fromarray(pixels_of(1))
    return [
        tiff(pixels_of(1)),
        saved(image),
        saved(image, big_tiff=True),
        saved(image, compression="tiff_adobe_deflate"),
        saved(image, compression="tiff_lzw"),
        saved(image, format="PNG"),
        saved(Image.fromarray(pixels_of(1)[..., 0])),
    ]


def _address_space() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize()


# target → (attempt, cases a round): the quick ones get more
TARGETS: Mapping[str, tuple[Callable[[Random], None], int]] = {
    "tiff": (fuzz_tiff, 40),
    "table": (fuzz_table, 20),
    "zip": (fuzz_zip, 2),
    "members": (fuzz_members, 2),
}

if __name__ == "__main__":
    main()
