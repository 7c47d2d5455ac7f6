"""The promotion log's lines: what each says, how they are chained, and what damage shows.

Each line carries its own SHA-256 and that of the line before it. It is kept twice (a file and tags
of the registered model), so that a changed or cut line is noticed and, where the other copy is
sound, restored.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

FIRST = "0" * 64  # what the first line names as the line before it


@dataclass(frozen=True)
class Entry:
    """One change of an alias.

    Attributes
    ----------
    number : from 1, without gaps
    utc : when, ISO 8601 to the second
    who : user@host
    action : ``register``, ``promote``, ``rollback``, ``reject``, ``found`` (the alias wasn't where
        the log had it) or ``restored`` (of the log itself)
    alias : ``champion`` or ``challenger``; empty for ``reject`` and ``restored``
    from_version, to_version : where the alias was and is; None = nowhere
    manifest_sha256 : of ``to_version``, which tells it from one of that number in another registry
    evidence_sha256 : of the document that was decided on; None where nothing was judged
    forced : whether it was promoted against the rules
    why : in words
    previous : SHA-256 of the line before
    """

    number: int
    utc: str
    who: str
    action: str
    alias: str
    from_version: int | None
    to_version: int | None
    manifest_sha256: str | None
    evidence_sha256: str | None
    forced: bool
    why: str
    previous: str

    @property
    def sha256(self) -> str:
        """Of the line's content."""
        return hashlib.sha256(_canonical(asdict(self)).encode()).hexdigest()

    @property
    def line(self) -> str:
        """As it is written, without the newline."""
        return _canonical({**asdict(self), "sha256": self.sha256})


@dataclass(frozen=True)
class Reading:
    """What both copies say together.

    ``entries`` are in order; ``problems`` one sentence each. ``is_whole`` is False where one of the
    ``n_lines`` is lost in both copies, or doesn't follow from the one before.
    """

    entries: list[Entry]
    problems: list[str]
    is_whole: bool
    n_lines: int

    @property
    def last_sha256(self) -> str:
        """What the next line names as the line before it."""
        return self.entries[-1].sha256 if self.entries else FIRST

    def position(self, alias: str) -> int | None:
        """Where the log has an alias; None = nowhere."""
        moves = [entry for entry in self.entries if entry.alias == alias]
        return moves[-1].to_version if moves else None


def parse(line: str) -> Entry | None:
    """The entry of a line; None where a byte of it was changed."""
    try:
        values: dict[str, Any] = json.loads(line)
        sha256 = values.pop("sha256")
        entry = Entry(**values)
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    return entry if entry.sha256 == sha256 and entry.line == line else None


def read_together(
    file_lines: Sequence[str], tag_lines: Mapping[int, str], *, file_name: str
) -> Reading:
    """Join the file's lines with the tags' (by number), naming what is changed or missing."""
    problems: list[str] = []
    in_file, changed_lines = _sound(enumerate(file_lines, start=1))
    in_tags, changed_tags = _sound(tag_lines.items())
    problems += [f"line {place} of {file_name} was changed" for place in changed_lines]
    problems += [f"tag {tag_name(n)} of the registered model was changed" for n in changed_tags]
    n = max([len(file_lines), *in_file, *tag_lines, 0])
    entries: list[Entry] = []
    is_whole = True
    for number in range(1, n + 1):
        entry, problem = _one(in_file.get(number), in_tags.get(number), entries, number, file_name)
        is_said = entry is not None and number in {*changed_lines, *changed_tags}
        if problem is not None and not is_said:
            problems.append(problem)
        if entry is None:
            is_whole = False
        else:
            is_chained = entry.previous == (entries[-1].sha256 if entries else FIRST)
            if not is_chained and is_whole:
                problems.append(f"line {number} doesn't follow from the line before it")
                is_whole = False
            entries.append(entry)
    return Reading(entries, problems, is_whole, n_lines=n)


def champions(entries: Iterable[Entry]) -> list[tuple[int, str | None]]:
    """Champions that led to the present one, oldest first: (version, its manifest's SHA-256).

    A rollback takes those after its target away, so that two in a row go back two steps.
    """
    stack: list[tuple[int, str | None]] = []
    for entry in champion_moves(entries):
        if entry.to_version is None:
            continue
        version = (entry.to_version, entry.manifest_sha256)
        if entry.action == "rollback" and version in stack:
            while stack[-1] != version:
                stack.pop()
        elif not stack or stack[-1] != version:
            stack.append(version)
    return stack


def champion_moves(entries: Iterable[Entry]) -> list[Entry]:
    """Moves of the alias ``champion`` that stood.

    Without those that were logged but never made, after which the alias was found where it had
    been.
    """
    stood: list[Entry] = []
    for move in entries:
        if move.alias != "champion":
            continue
        came_back = (move.to_version, move.from_version)
        if move.action == "found" and stood and came_back == _ends(stood[-1]):
            stood.pop()
        else:
            stood.append(move)
    return stood


def _ends(move: Entry) -> tuple[int | None, int | None]:
    return move.from_version, move.to_version


def tag_name(number: int) -> str:
    """Name of a line's tag; sorts by number."""
    return f"promotion.{number:06d}"


def _canonical(values: Mapping[str, Any]) -> str:
    return json.dumps(values, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def _sound(lines: Iterable[tuple[int, str]]) -> tuple[dict[int, Entry], list[int]]:
    """Sound lines by their number, and the places of the others."""
    entries: dict[int, Entry] = {}
    changed = []
    for place, line in sorted(lines):
        entry = parse(line)
        if entry is None:
            changed.append(place)
        else:
            entries[entry.number] = entry
    return entries, changed


def _one(
    in_file: Entry | None,
    in_tags: Entry | None,
    before: Sequence[Entry],
    number: int,
    file_name: str,
) -> tuple[Entry | None, str | None]:
    """The line of that number, and what is wrong with its copies."""
    if in_file is not None and in_tags is not None:
        if in_file == in_tags:
            return in_file, None
        previous = before[-1].sha256 if before else FIRST
        chained = [entry for entry in (in_tags, in_file) if entry.previous == previous]
        chosen = chained[0] if chained else in_tags
        return chosen, f"line {number} of {file_name} is not what the registered model has"
    if in_file is None and in_tags is None:
        return None, f"line {number} is lost in both copies"
    where = file_name if in_file is None else "the registered model's tags"
    return in_file or in_tags, f"line {number} is missing from {where}"
