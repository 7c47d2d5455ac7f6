"""How fast ``ingest`` reads a zip: ``python -m benchmarks.ingest --patches 20000``.

Generates a zip of that many different patches in a temporary folder, ingests it and prints a
table. Kaggle's archive has 277,483 patches: 7.7 GB of zip and 7.7 GB of packed pixels on disk.
Expected on 2 idle cores: over 2,500 patches/s and under 600 MB at any size.
"""

import os
import shutil
import struct
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import typer

from benchmarks.full_archive import tiff_header
from benchmarks.measured import Measured, run_measured

ROOT = Path(__file__).resolve().parent.parent
TEST_SHARE = 0.207  # 57,458 of Kaggle's 277,483 patches
N_TEMPLATES = 32
_UNIQUE_BYTES = 16  # pixel bytes that make each patch one of its own

INGEST = """
import sys
from pathlib import Path
from src.data.patches import ingest_archive
from src.params import IngestParams
from src.system.log import get_logger

if __name__ == "__main__":
    archive, folder, workers = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    params = IngestParams(archive=str(archive), max_bad=0)
    ingest_archive(params, folder, workers=workers, log=get_logger("ingest"))
"""


def main(patches: int = 20_000, workers: int = 0, folder: Path | None = None) -> None:
    """Print patches/s, peak memory and disk of an ingest of PATCHES patches."""
    with tempfile.TemporaryDirectory(prefix="hcd-benchmark-", dir=folder) as temporary:
        archive = Path(temporary) / "archive.zip"
        started = time.perf_counter()
        write_archive(archive, patches)
        generated_s = time.perf_counter() - started
        measured = run_ingest(archive, Path(temporary) / "out", workers)
        packed_bytes = sum(f.stat().st_size for f in (Path(temporary) / "out").iterdir())
        archive_bytes = archive.stat().st_size
    rows = [
        ("patches", f"{patches:,}"),
        ("cores", f"{os.cpu_count()} (load before: {os.getloadavg()[0]:.1f})"),
        ("archive generated in", f"{generated_s:,.1f} s"),
        ("archive", f"{archive_bytes / 1e6:,.0f} MB"),
        ("ingest, start of Python to end", f"{measured.wall_s:,.1f} s"),
        ("throughput", f"{patches / measured.wall_s:,.0f} patches/s"),
        ("throughput of one core alone", f"{patches / measured.cpu_s:,.0f} patches/s"),
        ("peak memory, all processes", f"{measured.peak_bytes / 1e6:,.0f} MB"),
        ("packed", f"{packed_bytes / 1e6:,.0f} MB"),
    ]
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        sys.stdout.write(f"{name:<{width}}  {value:>24}\n")


def write_archive(path: Path, n_patches: int) -> None:
    """A zip in Kaggle's layout whose patches differ in a few bytes, without compressing each.

    Each member is a stored deflate block (header and the bytes that differ) before one of a few
    deflated remainders, so writing is as fast as the disk; reading costs what Kaggle's zip costs.
    """
    templates = [_template(seed) for seed in range(N_TEMPLATES)]
    n_test = max(1, int(n_patches * TEST_SHARE))
    ids = {
        "train": [_patch_id(n) for n in range(n_patches - n_test)],
        "test": [_patch_id(n) for n in range(n_patches - n_test, n_patches)],
    }
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        n = 0
        for subset, names in ids.items():
            for name in names:
                _write_patch(archive, f"{subset}/{name}.tif", templates[n % N_TEMPLATES], n)
                n += 1
        archive.writestr("train_labels.csv", _table(ids["train"], lambda n: n % 5 // 3))
        archive.writestr("sample_submission.csv", _table(ids["test"], lambda _: 0))


def _patch_id(n: int) -> str:
    # scattered, so that the order of ids isn't the order in the zip
    return f"{n * 2654435761 % 2**32:08x}{n:032x}"


def _table(names: list[str], label: Callable[[int], int]) -> str:
    rows = (f"{name},{label(n)}\n" for n, name in enumerate(names))
    return "id,label\n" + "".join(rows)


def _template(seed: int) -> tuple[bytes, bytes, bytes]:
    """TIFF header, pixel bytes after the unique ones, and those deflated."""
    pixels = np.random.default_rng(seed).integers(0, 256, 96 * 96 * 3, dtype=np.uint8).tobytes()
    rest = pixels[_UNIQUE_BYTES:]
    compressor = zlib.compressobj(6, zlib.DEFLATED, -zlib.MAX_WBITS)
    return tiff_header(), rest, compressor.compress(rest) + compressor.flush()


def _write_patch(
    archive: zipfile.ZipFile, name: str, template: tuple[bytes, bytes, bytes], n: int
) -> None:
    header, rest, rest_deflated = template
    start = header + n.to_bytes(_UNIQUE_BYTES, "little")
    block = struct.pack("<BHH", 0, len(start), len(start) ^ 0xFFFF) + start
    info = zipfile.ZipInfo(name)
    info.compress_type = zipfile.ZIP_DEFLATED
    info.CRC = zlib.crc32(rest, zlib.crc32(start))
    info.file_size = len(start) + len(rest)
    info.compress_size = len(block) + len(rest_deflated)
    # what ZipFile.writestr does, but for the compressing
    assert archive.fp is not None
    info.header_offset = archive.fp.tell()
    archive.fp.write(info.FileHeader(zip64=False) + block + rest_deflated)
    archive.start_dir = archive.fp.tell()
    archive.filelist.append(info)
    archive.NameToInfo[name] = info


def run_ingest(archive: Path, folder: Path, workers: int) -> Measured:
    """Ingest in a process of its own, as the stage does."""
    script = archive.with_name("ingest_script.py")
    script.write_text(INGEST)
    command = [sys.executable, str(script), str(archive), str(folder), str(workers)]
    return run_measured(command, env={"PYTHONPATH": str(ROOT)})


if __name__ == "__main__":
    if shutil.disk_usage(tempfile.gettempdir()).free < 1e9:
        sys.exit("less than 1 GB free for temporary files; set TMPDIR")
    typer.run(main)
