"""Who is champion, and why: every move of an alias, decided against what is still true, and logged.

One JSON line per move in ``mlruns/promotions/<name>/log.jsonl``, written before the alias moves.
The document that was decided on is a file named by its SHA-256 beside it, and in short a tag of the
version.
"""

from __future__ import annotations

import getpass
import json
import platform
import tempfile
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from src import paths
from src.system.durable import sha256_file, write_bytes, write_json
from src.system.errors import ProjectError
from src.system.locks import taking_turns
from src.system.log import get_logger
from src.tracking.registry import CHALLENGER, CHAMPION, Alias, Version, aliases, find_version
from src.tracking.store import connect, reporting

_LONGEST_WHY = 500
# how the tag ``rejected`` begins where no person rejected the version itself
_REPLACED, _ROLLED_BACK = "replaced by force with version", "rolled back:"


class PromotionRefused(ProjectError):
    """A version may not become champion, or what was asked for can't be done."""


class PromotionConflict(ProjectError):
    """The champion isn't the one a decision was taken against."""


@dataclass(frozen=True)
class Move:
    """One line of the log.

    Attributes
    ----------
    utc : when, ISO 8601 to the second
    who : user@host
    action : ``register``, ``promote``, ``rollback`` or ``reject``
    alias : ``champion`` or ``challenger``; empty where a version was rejected and no alias moved
    from_version, to_version : where the alias was and is; None = nowhere
    manifest_sha256 : of ``to_version``, which tells it from one of that number in another registry
    evidence_sha256 : of the document that was decided on; None where nothing was judged
    forced : whether it was promoted against the rules
    why : in words
    """

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


def one_at_a_time(name: str) -> AbstractContextManager[None]:
    """Wait until no other process of this machine decides about that model.

    Between machines that share a registry there is no lock, only the comparison in
    :func:`move_alias`.
    """
    return taking_turns(
        paths.TRACKING_LOCK.with_name(f"register-{name}.lock"),
        waiting=f"waiting for another decision about {name} to end",
        log=get_logger("tracking"),
    )


def move_alias(
    name: str,
    alias: Alias,
    to: Version | None,
    *,
    expected: int | None,
    action: str,
    why: str,
    evidence_sha256: str | None = None,
    forced: bool = False,
) -> None:
    """Log a move and make it, inside :func:`one_at_a_time`; None takes the alias away.

    What is no change isn't logged.

    Raises
    ------
    PromotionConflict
        The alias isn't at ``expected``, which the decision was taken against.
    VerificationError, TrackingError
        The version's files aren't those registered; the alias stays where it was.
    """
    now = aliases(name).get(alias)
    if now != expected:
        raise PromotionConflict(
            f"{alias} of {name} is {_shown(now)}, but this was decided against "
            f"{_shown(expected)}: another promotion was faster; nothing was moved, run again"
        )
    number = None if to is None else to.number
    if number == now:
        return
    if to is not None:
        to.verify()
    _append(
        name,
        action=action,
        why=why,
        alias=alias,
        from_version=now,
        to_version=number,
        manifest_sha256=None if to is None else to.manifest_sha256,
        evidence_sha256=evidence_sha256,
        forced=forced,
    )
    set_alias(name, alias, number)


def set_alias(name: str, alias: Alias, number: int | None) -> None:
    """Point an alias at a version, or take it away, without a word in the log."""
    client = connect().client
    with reporting(f"did not move alias {alias} of {name}"):
        if number is None:
            client.delete_registered_model_alias(name, alias)
        else:
            client.set_registered_model_alias(name, alias, str(number))


def make_challenger(version: Version) -> None:
    """Point the alias ``challenger`` at the newest version."""
    now = aliases(version.name).get(CHALLENGER)
    move_alias(
        version.name,
        CHALLENGER,
        version,
        expected=now,
        action="register",
        why="the newest version",
    )


def promote(
    version: Version,
    *,
    expected: int | None,
    document: Mapping[str, Any],
    said: Mapping[str, str],
    action: str,
    why: str,
    forced: bool = False,
) -> None:
    """Keep the evidence, make the version champion, tag it with what was ``said`` of it.

    After a forced promotion the champion it replaced counts as rejected: otherwise the next
    ``register`` might put it back by the rules that were passed over.
    """
    evidence_sha256 = store_evidence(version.name, document)
    move_alias(
        version.name,
        CHAMPION,
        version,
        expected=expected,
        action=action,
        why=why,
        evidence_sha256=evidence_sha256,
        forced=forced,
    )
    for outdated in ("rejected",) if forced else ("forced", "forced_why"):
        version.drop_tag(outdated)
    of_force = {"forced": "true", "forced_why": why} if forced else {}
    version.set_tags({**said, **of_force, "evidence_sha256": evidence_sha256})
    if forced and expected is not None:
        replaced = f"{_REPLACED} {version.number}: {why}"
        find_version(version.name, expected).set_tags({"rejected": replaced})


def refuse(version: Version, document: Mapping[str, Any], said: Mapping[str, str]) -> None:
    """Keep the evidence of a version that isn't promoted, and tag it."""
    sha256 = store_evidence(version.name, document)
    version.set_tags({**said, "evidence_sha256": sha256})


def roll_back(target: Version, *, expected: int | None, why: str) -> None:
    """Make ``target`` champion again; the present champion counts as rejected."""
    move_alias(
        target.name, CHAMPION, target, expected=expected, action="rollback", why=why or "no reason"
    )
    if expected is not None:
        left = find_version(target.name, expected)
        left.set_tags({"rejected": f"{_ROLLED_BACK} {why or 'no reason'}"})
    target.drop_tag("rejected")


def reject(version: Version, *, why: str) -> None:
    """Mark a version so that the rules never promote it; it loses the alias ``challenger``.

    Raises
    ------
    PromotionRefused
        It is the champion.
    """
    now = aliases(version.name)
    if now.get(CHAMPION) == version.number:
        raise PromotionRefused(
            f"{version} is champion; run: python -m src.promote --rollback "
            '--why "…", which rejects it as well'
        )
    if now.get(CHALLENGER) == version.number:
        move_alias(
            version.name, CHALLENGER, None, expected=version.number, action="reject", why=why
        )
    else:
        _append(
            version.name,
            action="reject",
            why=why,
            from_version=version.number,
            to_version=version.number,
        )
    version.set_tags({"rejected": why})


def champion_before(name: str, present: int | None) -> Version:
    """The champion before ``present``, by the promotion log.

    Raises
    ------
    PromotionRefused
        There was none, another version has its number now, or a person rejected it; one that was
        only left or replaced may come back.
    """
    led_here = champions(name)
    if led_here and led_here[-1][0] == present:
        led_here.pop()
    if not led_here:
        raise PromotionRefused(
            f"the promotion log of {name} knows no champion before "
            f"{'this one' if present is None else f'version {present}'}; choose one: "
            "python -m src.promote --version N"
        )
    number, manifest_sha256 = led_here[-1]
    target = find_version(name, number)
    if target.tags.get("manifest_sha256") != manifest_sha256:
        raise PromotionRefused(
            f"{target} is not the one that was champion: the registry was made "
            "anew; choose one: python -m src.promote --version N"
        )
    rejected = target.rejected
    if rejected is not None and not rejected.startswith((_REPLACED, _ROLLED_BACK)):
        raise PromotionRefused(
            f"{target}, champion before this one, was rejected: {rejected}; choose "
            "another: python -m src.promote --version N, or against the rejection this one: "
            f'--version {number} --force --why "…"'
        )
    return target


def champions(name: str) -> list[tuple[int, str | None]]:
    """Champions that led to the present one, oldest first: (number, its manifest's SHA-256).

    A rollback takes those after its target away, so that two in a row go back two steps.
    """
    stack: list[tuple[int, str | None]] = []
    for move in champion_moves(name):
        if move.to_version is None:
            continue
        version = (move.to_version, move.manifest_sha256)
        if move.action == "rollback" and version in stack:
            del stack[stack.index(version) + 1 :]
        elif stack[-1:] != [version]:
            stack.append(version)
    return stack


def champion_moves(name: str) -> list[Move]:
    """Moves of the alias ``champion`` that were made, oldest first.

    If what comes next begins where a move began, the process was killed between writing the log and
    moving the alias.
    """
    moves = [move for move in read_log(name) if move.alias == CHAMPION]
    next_begins = [*(move.from_version for move in moves[1:]), aliases(name).get(CHAMPION)]
    return [
        move for move, begin in zip(moves, next_begins, strict=False) if begin != move.from_version
    ]


def is_chosen_by_a_person(name: str) -> bool:
    """Whether the command ``promote`` made the present champion, and not ``register``."""
    moves = champion_moves(name)
    return bool(moves) and moves[-1].action in ("promote", "rollback")


def read_log(name: str) -> list[Move]:
    """Every line of the log, oldest first.

    Raises
    ------
    ProjectError
        A line is damaged.
    """
    file = log_file(name)
    text = file.read_bytes().decode("utf-8", errors="replace") if file.is_file() else ""
    moves = []
    # not splitlines(), which also splits at characters that JSON leaves as they are
    for number, line in enumerate(text.removesuffix("\n").split("\n") if text else [], start=1):
        try:
            moves.append(Move(**json.loads(line)))
        except (ValueError, TypeError) as error:
            raise ProjectError(
                f"line {number} of {file.relative_to(paths.TRACKING_ROOT)} can't be read; restore "
                "the file from a backup, or delete that line"
            ) from error
    return moves


def log_file(name: str) -> Path:
    """Where the log of a registered model lies."""
    return paths.PROMOTIONS / name / "log.jsonl"


def evidence_file(name: str, sha256: str) -> Path:
    """Where a document that was decided on lies."""
    return paths.PROMOTIONS / name / "evidence" / f"{sha256}.json"


def store_evidence(name: str, document: Mapping[str, Any]) -> str:
    """Keep what a decision was based on under its SHA-256, which is returned."""
    with tempfile.TemporaryDirectory() as temporary:
        draft = Path(temporary) / "evidence.json"
        write_json(draft, document)
        sha256 = sha256_file(draft)
        write_bytes(evidence_file(name, sha256), draft.read_bytes())
    return sha256


def _append(name: str, *, action: str, why: str, **more: Any) -> None:
    reason = " ".join(why.split())
    if len(reason) > _LONGEST_WHY:
        reason = reason[: _LONGEST_WHY - 1] + "…"
    nothing = {"alias": "", "manifest_sha256": None, "evidence_sha256": None, "forced": False}
    now = datetime.now(UTC).isoformat(timespec="seconds")
    move = Move(**{"utc": now, "who": _who(), "action": action, "why": reason, **nothing, **more})
    file = log_file(name)
    before = file.read_bytes() if file.is_file() else b""
    line = json.dumps(asdict(move), ensure_ascii=False)
    write_bytes(file, before + line.encode() + b"\n")  # whole: a torn line would block the next


def _who() -> str:
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a container's user without a name
        user = "unknown"
    return f"{user}@{platform.node()}"


def _shown(number: int | None) -> str:
    return "nowhere" if number is None else f"version {number}"
