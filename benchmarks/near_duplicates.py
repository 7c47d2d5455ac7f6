"""How far apart perceptual hashes are: of one patch changed, and of different patches.

``python -m benchmarks.near_duplicates data/source/sample.zip`` (any archive in Kaggle's layout).
"""

import io
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import typer
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.table import Table

from src.data.groups import MAX_DISTANCE
from src.data.measurements import optical_density, orientations, perceptual_hashes
from src.data.patches import ingest_archive, open_pixels, read_patches
from src.params import IngestParams
from src.system.log import get_logger

Patches = NDArray[np.uint8]
N_CHANGED = 1_000
_ROWS_AT_ONCE = 100


def main(archive: Path) -> None:
    """Print both tables for ARCHIVE."""
    with tempfile.TemporaryDirectory(prefix="hcd-near-") as folder:
        params = IngestParams(archive=str(archive.resolve()), max_bad=0)
        ingest_archive(params, Path(folder), workers=0, log=get_logger("benchmark"))
        hashes = read_patches(Path(folder))["phash"].dropna().to_numpy(dtype=np.uint64)
        patches = np.array(open_pixels("train", Path(folder))[:N_CHANGED])
    console = Console(width=100)
    console.print(_changed(patches))
    closest = _closest(np.unique(hashes))
    counts = ", ".join(f"{bits} bits: {n}" for bits, n in enumerate(closest[:13]) if n)
    console.print(f"pairs of {len(hashes):,} different patches, by distance: {counts}")


def _changed(patches: Patches) -> Table:
    rng = np.random.default_rng(0)
    changes: dict[str, Callable[[Patches], Any]] = {
        "mirrored": lambda p: p[:, ::-1],
        "5 % brighter": lambda p: p * 1.05,
        "5 % darker": lambda p: p * 0.95,
        "JPEG, quality 90": lambda p: np.stack([_jpeg(patch, 90) for patch in p]),
        "JPEG, quality 60": lambda p: np.stack([_jpeg(patch, 60) for patch in p]),
        "noise, sd 5": lambda p: p + rng.normal(0, 5, p.shape),
        "96 → 80 → 96 px": lambda p: np.stack([_resampled(patch) for patch in p]),
        "moved by 1 px": lambda p: np.roll(p, 1, axis=2),
        "other stain": lambda p: 255 * (p / 255) ** np.array([1.15, 0.9, 1.1]),
    }
    before, known = perceptual_hashes(optical_density(patches))
    table = Table("the same patch", "median bits", "99 %", "largest", f"within {MAX_DISTANCE} bits")
    for name, change in changes.items():
        pixels = np.clip(change(patches), 0, 255).astype(np.uint8)
        after, _ = perceptual_hashes(optical_density(pixels))
        apart = np.bitwise_count(orientations(before)[known] ^ after[known, None]).min(axis=1)
        median, high = np.percentile(apart, [50, 99])
        table.add_row(
            name,
            f"{median:.0f}",
            f"{high:.0f}",
            str(apart.max()),
            f"{(apart <= MAX_DISTANCE).mean():.1%}",
        )
    return table


def _closest(hashes: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Number of pairs of distinct hashes at each distance, by brute force."""
    turned = orientations(hashes)
    counts = np.zeros(64, np.int64)
    for start in range(0, len(hashes), _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        distance = np.bitwise_count(hashes[rows, None, None] ^ turned[None]).min(axis=2)
        later = np.arange(len(hashes))[None, :] > np.arange(len(hashes))[rows, None]
        counts += np.bincount(distance[later], minlength=64)
    return counts


def _jpeg(patch: Patches, quality: int) -> Patches:
    buffer = io.BytesIO()
    Image.fromarray(patch).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))


def _resampled(patch: Patches) -> Patches:
    small = Image.fromarray(patch).resize((80, 80), Image.Resampling.BICUBIC)
    return np.asarray(small.resize((96, 96), Image.Resampling.BICUBIC))


if __name__ == "__main__":
    typer.run(main)
