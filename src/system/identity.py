"""What identifies a piece of work: its code as one digest, its settings under flat names."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cache
from typing import Any

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


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, keys joined by dots; lists and other values stay as they are."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        name = f"{prefix}{key}"
        flat.update(flatten(value, f"{name}.") if isinstance(value, Mapping) else {name: value})
    return flat
