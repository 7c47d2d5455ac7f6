"""Who is champion: every change of an alias, one at a time, decided against what still holds.

A change is written to the promotion log before the alias moves, in
``mlruns/promotions/<name>/log.jsonl`` and as tags of the registered model. A process killed between
the two leaves an alias that isn't where the log has it; the next change notes that as ``found``, as
it does an alias that somebody moved in MLflow's own page.
"""

import getpass
import platform
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from src import paths
from src.system.durable import sha256_file, write_bytes, write_json
from src.system.errors import ProjectError
from src.system.log import get_logger
from src.tracking.promotion_log import Entry, Reading, read_together, tag_name
from src.tracking.registry import (
    CHALLENGER,
    CHAMPION,
    Alias,
    aliases,
    drop_alias,
    registered_tags,
    set_alias,
    set_registered_tags,
    verify_version,
    version_tags,
)

LONGEST_WHY = 500

_SAY_AFTER_S = 2.0
_FILE_NAME = "log.jsonl"
_TAG_PREFIX = "promotion."


class PromotionConflict(ProjectError):
    """The champion isn't the one a decision was taken against."""


class AliasChanges:
    """The right to move aliases of one registered model; see :func:`alias_changes`."""

    def __init__(self, name: str) -> None:
        self.name = name

    def move(
        self,
        alias: Alias,
        to_version: int | None,
        *,
        expected: int | None,
        action: str,
        why: str,
        evidence_sha256: str | None = None,
        forced: bool = False,
    ) -> None:
        """Log a change and make it; None takes the alias away. What is no change isn't logged.

        Raises
        ------
        PromotionConflict
            The alias isn't at ``expected``, which the decision was taken against.
        VerificationError, TrackingError
            The version's files aren't those registered; the alias stays where it was.
        """
        now = aliases(self.name).get(alias)
        if now != expected:
            raise PromotionConflict(
                f"{alias} of {self.name} is {_shown(now)}, but this was decided against "
                f"{_shown(expected)}: another promotion was faster; nothing was moved, run again"
            )
        if to_version == now:
            return
        if to_version is not None:
            verify_version(self.name, to_version)
        self.settle()
        self._append(
            action,
            why,
            alias=alias,
            from_version=now,
            to_version=to_version,
            evidence_sha256=evidence_sha256,
            forced=forced,
        )
        if to_version is None:
            drop_alias(self.name, alias)
        else:
            set_alias(self.name, alias, to_version)

    def note(self, action: str, why: str, *, version: int) -> None:
        """Log what a person decided about a version without moving an alias."""
        self.settle()
        self._append(action, why, from_version=version, to_version=version)

    def settle(self) -> None:
        """Let the log hold again: both copies the same, aliases where it has them."""
        reading = read_log(self.name)
        if reading.problems:
            said = "; ".join(reading.problems)
            get_logger("tracking").warning(f"promotion log of {self.name}: {said}")
            if reading.is_whole:
                _restore(self.name, reading)
                self._append("restored", said)
        actual = aliases(self.name)
        for alias in (CHAMPION, CHALLENGER):
            logged, found = reading.position(alias), actual.get(alias)
            if logged != found:
                why = (
                    f"the log had it at {_shown(logged)}: moved past this project, a change that "
                    "was broken off, or another registry"
                )
                self._append("found", why, alias=alias, from_version=logged, to_version=found)

    def _append(
        self,
        action: str,
        why: str,
        *,
        alias: str = "",
        from_version: int | None = None,
        to_version: int | None = None,
        evidence_sha256: str | None = None,
        forced: bool = False,
    ) -> None:
        reading = read_log(self.name)
        entry = Entry(
            number=reading.n_lines + 1,
            utc=datetime.now(UTC).isoformat(timespec="seconds"),
            who=_who(),
            action=action,
            alias=alias,
            from_version=from_version,
            to_version=to_version,
            manifest_sha256=_manifest_sha256(self.name, to_version),
            evidence_sha256=evidence_sha256,
            forced=forced,
            why=_one_line(why),
            previous=reading.last_sha256,
        )
        _write_file(self.name, [*_file_lines(self.name), entry.line])
        set_registered_tags(self.name, {tag_name(entry.number): entry.line})


@contextmanager
def alias_changes(name: str) -> Iterator[AliasChanges]:
    """Wait until no other process of this machine changes aliases of that model, then yield.

    Between machines that share a registry there is no lock, only the comparison in
    :meth:`AliasChanges.move`.
    """
    folder = paths.TRACKING_LOCK.parent
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / f"register-{name}.lock")
    try:
        lock.acquire(timeout=_SAY_AFTER_S)
    except Timeout:
        get_logger("tracking").info(f"waiting for another decision about {name} to end")
        lock.acquire()
    try:
        yield AliasChanges(name)
    finally:
        lock.release()


def read_log(name: str) -> Reading:
    """The promotion log from both of its copies."""
    tags = {
        int(key.removeprefix(_TAG_PREFIX)): value
        for key, value in registered_tags(name).items()
        if key.removeprefix(_TAG_PREFIX).isdecimal()
    }
    return read_together(_file_lines(name), tags, file_name=_shown_path(_log_file(name)))


def store_evidence(name: str, document: Mapping[str, Any]) -> str:
    """Keep what a decision was based on under its SHA-256, which is returned."""
    folder = paths.PROMOTIONS / name / "evidence"
    with tempfile.TemporaryDirectory() as temporary:
        draft = Path(temporary) / "evidence.json"
        write_json(draft, document)
        sha256, data = sha256_file(draft), draft.read_bytes()
    write_bytes(folder / f"{sha256}.json", data)
    return sha256


def _restore(name: str, reading: Reading) -> None:
    """Write both copies from the sound lines; the damaged file is kept beside them."""
    file = _log_file(name)
    lines = [entry.line for entry in reading.entries]
    if file.is_file() and _file_lines(name) != lines:
        now = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
        write_bytes(file.with_name(f"{_FILE_NAME}.damaged-{now}"), file.read_bytes())
    _write_file(name, lines)
    tags = registered_tags(name)
    restored = {tag_name(entry.number): entry.line for entry in reading.entries}
    set_registered_tags(
        name, {key: line for key, line in restored.items() if tags.get(key) != line}
    )


def _log_file(name: str) -> Path:
    return paths.PROMOTIONS / name / _FILE_NAME


def _file_lines(name: str) -> list[str]:
    file = _log_file(name)
    if not file.is_file():
        return []
    # not splitlines(), which also splits at characters that JSON leaves as they are
    return file.read_bytes().decode("utf-8", errors="replace").removesuffix("\n").split("\n")


def _write_file(name: str, lines: list[str]) -> None:
    write_bytes(_log_file(name), "".join(f"{line}\n" for line in lines).encode())


def _manifest_sha256(name: str, version: int | None) -> str | None:
    return None if version is None else version_tags(name, version).get("manifest_sha256")


def _who() -> str:
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a container's user without a name
        user = "unknown"
    return f"{user}@{platform.node()}"


def _one_line(why: str) -> str:
    text = " ".join(why.split())
    return text if len(text) <= LONGEST_WHY else text[: LONGEST_WHY - 1] + "…"


def _shown(version: int | None) -> str:
    return "nowhere" if version is None else f"version {version}"


def _shown_path(path: Path) -> str:
    return str(path.relative_to(paths.TRACKING_ROOT))
