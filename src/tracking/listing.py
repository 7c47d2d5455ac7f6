"""The registered versions and the promotion log, as tables for people."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from src.tracking.aliases import read_log
from src.tracking.logged_models import VerificationError
from src.tracking.promotion_log import Entry, Reading
from src.tracking.registry import aliases, read_evidence, versions
from src.tracking.store import TrackingError

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class VersionState:
    """A version as it is now.

    ``broken`` is what is wrong with its files, None where they are those registered; without its
    files ``evidence`` is empty.
    """

    version: int
    created_ms: int
    aliases: Sequence[str]
    tags: Mapping[str, str]
    evidence: Mapping[str, Any]
    broken: str | None


def read_states(name: str) -> tuple[list[VersionState], Reading]:
    """Every version, its files verified, oldest first; and the promotion log."""
    now = aliases(name)
    states = []
    for entry in versions(name):
        broken, evidence = None, {}
        try:
            evidence = read_evidence(name, entry.version)
        except (VerificationError, TrackingError) as error:
            broken = str(error)
        names = sorted(alias for alias, version in now.items() if version == entry.version)
        states.append(
            VersionState(entry.version, entry.created_ms, names, entry.tags, evidence, broken)
        )
    return states, read_log(name)


def versions_table(name: str, states: Sequence[VersionState]) -> "Table":
    """A row a version: aliases, state, key metrics on the holdout of its time, last decision."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=f"Versions of {name}")
    for column in ("version", "alias", "state", "AUROC (interval)", "colours", "sens.", "spec."):
        table.add_column(column, no_wrap=column in ("version", "AUROC (interval)"))
    for column in ("rules", "run", "code", "Kaggle", "registered (UTC)"):
        table.add_column(column)
    for state in states:
        table.add_row(
            str(state.version),
            Text(", ".join(state.aliases), style="bold green"),
            Text(_state(state), style=_style(state)),
            *_metrics(state),
            _rules(state.tags),
            state.tags.get("run_id", "?")[:8],
            state.tags.get("git_commit", "?")[:8],
            _kaggle(state.tags),
            _minute(state.created_ms),
        )
    return table


def rules_table(version: int, rules: Sequence[Mapping[str, Any]]) -> "Table":
    """A row a rule: whether it holds, the value that came, what is allowed, in words."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=f"Rules for version {version}")
    for column in ("rule", "holds", "value", "allowed", "reason"):
        table.add_column(column)
    for rule in rules:
        value = "" if rule["value"] is None else f"{rule['value']:.4g}"
        held = Text("yes", style="green") if rule["held"] else Text("no", style="bold red")
        table.add_row(rule["rule"], held, value, Text(rule["allowed"]), Text(rule["reason"]))
    return table


def history_table(entries: Sequence[Entry]) -> "Table":
    """A row a line of the promotion log, newest last."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title="Promotion log")
    for column in ("#", "when (UTC)", "who", "what", "alias", "from", "to", "evidence", "why"):
        table.add_column(column)
    for entry in entries:
        style = "bold yellow" if entry.forced or entry.action in ("found", "restored") else ""
        table.add_row(
            str(entry.number),
            entry.utc.removesuffix("+00:00").replace("T", " "),
            entry.who,
            Text(f"{entry.action}, forced" if entry.forced else entry.action, style=style),
            entry.alias,
            _number(entry.from_version),
            _number(entry.to_version),
            (entry.evidence_sha256 or "")[:8],
            Text(entry.why),
        )
    return table


def _state(state: VersionState) -> str:
    if state.broken:
        return "BROKEN"
    marks = ["rejected"] if "rejected" in state.tags else []
    marks += ["forced"] if state.tags.get("forced") == "true" else []
    return ", ".join(marks) or "sound"


def _style(state: VersionState) -> str:
    if state.broken:
        return "bold red"
    return "" if _state(state) == "sound" else "bold yellow"


def _metrics(state: VersionState) -> tuple[str, str, str, str]:
    holdout = state.evidence.get("metrics", {}).get("holdout", {})
    auroc = state.tags.get("auroc", "?")
    if "auroc_low" in holdout:
        auroc += f" ({holdout['auroc_low']:.3f} to {holdout['auroc_high']:.3f})"
    at_point = [_three(holdout.get(metric)) for metric in ("sensitivity", "specificity")]
    return auroc, state.tags.get("baseline_auroc", "?"), at_point[0], at_point[1]


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


def _three(value: float | None) -> str:
    return "?" if value is None else f"{value:.3f}"


def _number(version: int | None) -> str:
    return "" if version is None else str(version)


def _minute(created_ms: int) -> str:
    return datetime.fromtimestamp(created_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M")
