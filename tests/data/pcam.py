"""Tiny PatchCamelyon files, laid out as the published ones."""

import gzip
import hashlib
from collections.abc import Mapping
from pathlib import Path

import h5py
import numpy as np

from tests.data.archives import pixels_of

COUNTS = {"train": 5, "valid": 3, "test": 4}


def h5_name(split: str, part: str) -> str:
    return f"camelyonpatch_level_2_split_{split}_{part}.h5"


def write_pcam(
    folder: Path, *, splits: Mapping[str, int] = COUNTS, gz: bool = False, meta: bool = False
) -> Path:
    """Images ``pixels_of(100 · split + row)``, labels 0, 1, 0, …; slides a and b in the meta."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, (split, n) in enumerate(splits.items()):
        labels = np.arange(n, dtype=np.uint8) % 2
        images = np.stack([pixels_of(100 * number + row) for row in range(n)])
        for part, values in (("x", images), ("y", labels.reshape(n, 1, 1, 1))):
            path = folder / h5_name(split, part)
            with h5py.File(path, "w") as file:
                file.create_dataset(part, data=values, chunks=(min(2, n), *values.shape[1:]))
            if gz:
                path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
                path.unlink()
        if meta:
            rows = "".join(
                f"{i},0,0,True,{bool(label)},slide_{'ab'[i % 2]}\n"
                for i, label in enumerate(labels)
            )
            header = ",coord_y,coord_x,tumor_patch,center_tumor_patch,wsi\n"
            (folder / f"camelyonpatch_level_2_split_{split}_meta.csv").write_text(header + rows)
    return folder


def pins(folder: Path) -> dict[str, str]:
    """``ingest.h5_sha256`` for all files of the folder."""
    files = [f for f in folder.iterdir() if ".h5" in f.name]
    return {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in files}
