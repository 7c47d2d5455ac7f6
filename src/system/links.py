"""Links of a chain of evidence: each holds, is changed or is missing, and says what it compared."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from src.system.durable import sha256_file

State = Literal["holds", "changed", "missing"]


@dataclass(frozen=True)
class Link:
    """One comparison. ``what`` names the file or entry, ``said`` what was found of it."""

    what: str
    state: State
    said: str


@dataclass(frozen=True)
class Part:
    """Links about one thing, in the order of the chain."""

    title: str
    links: list[Link]


def holds(what: str, said: str) -> Link:
    """A link that was checked and holds."""
    return Link(what, "holds", said)


def changed(what: str, said: str) -> Link:
    """A link whose two ends don't agree."""
    return Link(what, "changed", said)


def missing(what: str, said: str) -> Link:
    """A link of which one end isn't there, so that nothing can be compared."""
    return Link(what, "missing", said)


def same(what: str, found: object, expected: object, *, source: str) -> Link:
    """Whether ``found`` is what ``source`` says."""
    if found == expected:
        return holds(what, f"{_short(found)}, as {source} says")
    return changed(what, f"is {_short(found)}, but {source} says {_short(expected)}")


def manifest_entries(manifest: Path) -> dict[str, tuple[str, int]] | None:
    """File → (SHA-256, bytes); None where a byte of the manifest itself was changed.

    ``write_manifest`` spells one content in one way only, so that a change that JSON doesn't
    notice is noticed here.
    """
    try:
        text = manifest.read_text(encoding="utf-8")
        content = json.loads(text)
        entries = {name: (e["sha256"], e["bytes"]) for name, e in content["files"].items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    spelt = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    return entries if spelt == text else None


def is_listed(file: Path, entry: tuple[str, int]) -> bool:
    """Whether a file is there and has the bytes that its manifest names."""
    return file.is_file() and entry == (sha256_file(file), file.stat().st_size)


def _short(value: object) -> str:
    text = str(value)
    is_digest = len(text) >= 32 and all(c in "0123456789abcdef" for c in text)
    return f"{text[:12]}…" if is_digest else text
