"""The registered versions, the rules of a decision and the promotion log, as tables for people."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from src.system.errors import VerificationError
from src.tracking.promotions import Move, PromotionRefused, champion_moves, read_log
from src.tracking.registry import CHAMPION, Version, aliases, versions
from src.tracking.store import TrackingError


def show_versions(name: str) -> None:
    """Print every version, its files verified, and the promotion log.

    Raises
    ------
    PromotionRefused
        Nothing is registered.
    """
    found, now = versions(name), aliases(name)
    if not found:
        raise PromotionRefused(f"no version of {name} is registered; run: dvc repro register")
    broken = {v.number: reason for v in found if (reason := _what_is_broken(v)) is not None}
    _print(_versions_table(name, found, now, broken), _history_table(read_log(name)))
    moves = champion_moves(name)
    if (moves[-1].to_version if moves else None) != now.get(CHAMPION):
        _print("[bold red]the champion was moved outside this project: the log doesn't say so[/]")
    for number, reason in broken.items():
        _print(f"[bold red]version {number}: {reason}[/]")


def show_rules(number: int, rules: Iterable[Mapping[str, Any]]) -> None:
    """Print a row per rule: whether it holds, the value that came, what is allowed, in words."""
    table = Table(title=f"Rules for version {number}")
    for column in ("rule", "holds", "value", "allowed", "reason"):
        table.add_column(column)
    for rule in rules:
        value = "" if rule["value"] is None else f"{rule['value']:.4g}"
        held = Text("yes", style="green") if rule["held"] else Text("no", style="bold red")
        table.add_row(rule["rule"], held, value, Text(rule["allowed"]), Text(rule["reason"]))
    _print(table)


def _what_is_broken(version: Version) -> str | None:
    try:
        version.verify()
    except (VerificationError, TrackingError) as error:
        return str(error)
    return None


def _versions_table(
    name: str, found: Sequence[Version], now: Mapping[str, int], broken: Mapping[int, str]
) -> Table:
    """A row per version: aliases, state, metrics on the holdout of its time, last decision."""
    table = Table(title=f"Versions of {name}")
    for column in ("version", "alias", "state", "AUROC (interval)", "colours", "sens.", "spec."):
        table.add_column(column, no_wrap=column in ("version", "AUROC (interval)"))
    for column in ("rules", "run", "code", "Kaggle", "registered (UTC)"):
        table.add_column(column)
    for version in found:
        tags, is_broken = version.tags, version.number in broken
        marks = ["rejected"] * (version.rejected is not None) + ["forced"] * ("forced" in tags)
        state = "BROKEN" if is_broken else ", ".join(marks) or "sound"
        holdout = {} if is_broken else version.evidence.get("metrics", {}).get("holdout", {})
        auroc = tags.get("auroc", "?")
        if "auroc_low" in holdout:
            auroc += f" ({holdout['auroc_low']:.3f} to {holdout['auroc_high']:.3f})"
        registered = datetime.fromtimestamp(version.created_ms / 1000, UTC)
        table.add_row(
            str(version.number),
            Text(", ".join(a for a, n in sorted(now.items()) if n == version.number), "bold green"),
            Text(state, "bold red" if is_broken else "bold yellow" if marks else ""),
            auroc,
            tags.get("baseline_auroc", "?"),
            *(f"{holdout[m]:.3f}" if m in holdout else "?" for m in ("sensitivity", "specificity")),
            _rules(tags),
            tags.get("run_id", "?")[:8],
            tags.get("git_commit", "?")[:8],
            _kaggle(tags),
            f"{registered:%Y-%m-%d %H:%M}",
        )
    return table


def _history_table(moves: Iterable[Move]) -> Table:
    """A row per line of the promotion log, newest last."""
    table = Table(title="Promotion log")
    for column in ("when (UTC)", "who", "what", "alias", "from", "to", "evidence", "why"):
        table.add_column(column)
    for move in moves:
        table.add_row(
            move.utc.removesuffix("+00:00").replace("T", " "),
            move.who,
            Text(f"{move.action}, forced", "bold yellow") if move.forced else move.action,
            move.alias,
            "" if move.from_version is None else str(move.from_version),
            "" if move.to_version is None else str(move.to_version),
            (move.evidence_sha256 or "")[:8],
            Text(move.why),
        )
    return table


def _rules(tags: Mapping[str, str]) -> str:
    held = json.loads(tags.get("rules", "{}"))
    if not held:
        return tags.get("decision", "not judged")
    failed = [rule for rule, holds in held.items() if not holds]
    return f"{len(held) - len(failed)} of {len(held)} hold" + (
        f"; not: {', '.join(failed)}" if failed else ""
    )


def _kaggle(tags: Mapping[str, str]) -> str:
    scores = [tags.get(f"kaggle.{kind}_score") for kind in ("public", "private")]
    return " / ".join(score or "?" for score in scores) if any(scores) else ""


def _print(*things: Any) -> None:
    # on a terminal its width, else wide enough for a file or a pager
    console = Console() if Console().is_terminal else Console(width=160)
    for thing in things:
        console.print(thing)
