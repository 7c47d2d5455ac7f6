"""Which code decides trained weights: one digest, for checkpoints, activations and studies."""

from __future__ import annotations

import hashlib
from functools import cache

from src import paths

_DECIDES_WEIGHTS = ("data/*.py", "model/*.py")  # everything from packed pixels to weights


@cache
def training_code_digest() -> str:
    """SHA-256 of the files that trained weights depend on, names and bytes."""
    digest = hashlib.sha256()
    for pattern in _DECIDES_WEIGHTS:
        for file in sorted((paths.ROOT / "src").glob(pattern)):
            digest.update(f"{file.name}\n".encode() + file.read_bytes())
    return digest.hexdigest()
