"""Whether a version becomes champion: a pure decision, with every reason.

To add a rule: write ``Evidence -> Check`` and name it in ``PROMOTION_RULES``; all must hold.
"""

from collections.abc import Callable
from dataclasses import dataclass

from src.evaluation.intervals import Difference


@dataclass(frozen=True)
class Evidence:
    """What is known of the challenger on holdout.

    ``to_champion`` is None where there is no champion; ``margin`` is the AUROC a challenger may
    fall below it.
    """

    to_baseline: Difference
    to_champion: Difference | None
    margin: float


@dataclass(frozen=True)
class Check:
    """One rule's outcome: the value that came, what is allowed, whether it held, in words."""

    value: float | None
    allowed: str
    held: bool
    reason: str


@dataclass(frozen=True)
class Decision:
    """``promote`` is True where every check, by name of its rule, held."""

    promote: bool
    checks: dict[str, Check]

    @property
    def reasons(self) -> list[str]:
        """One sentence a rule, in order."""
        return [check.reason for check in self.checks.values()]


def decide(
    challenger_vs_baseline: Difference,
    challenger_vs_champion: Difference | None,
    *,
    margin: float,
) -> Decision:
    """Apply every rule of ``PROMOTION_RULES``; the champion's difference is None without one."""
    evidence = Evidence(challenger_vs_baseline, challenger_vs_champion, margin)
    checks = {name: rule(evidence) for name, rule in PROMOTION_RULES.items()}
    return Decision(all(check.held for check in checks.values()), checks)


def _beats_baseline(evidence: Evidence) -> Check:
    difference = evidence.to_baseline
    held = difference.above_zero
    verb = "beats" if held else "does not beat"
    return Check(
        value=difference.low,
        allowed="> 0",
        held=held,
        reason=f"{verb} the colour baseline: AUROC {_signed(difference)}",
    )


def _not_below_champion(evidence: Evidence) -> Check:
    difference, margin = evidence.to_champion, evidence.margin
    if difference is None:
        return Check(value=None, allowed=_at_least(margin), held=True, reason="no champion yet")
    held = difference.value >= -margin
    verb = "is not below" if held else "is below"
    return Check(
        value=difference.value,
        allowed=_at_least(margin),
        held=held,
        reason=f"{verb} the champion on the same patches: AUROC {_signed(difference)}, "
        f"allowed {_at_least(margin)}",
    )


def _at_least(margin: float) -> str:
    return f">= {-margin + 0.0:g}"  # + 0.0 turns -0 into 0


def _signed(difference: Difference) -> str:
    return f"{difference.value:+.3f} ({difference.low:+.3f} to {difference.high:+.3f})"


PROMOTION_RULES: dict[str, Callable[[Evidence], Check]] = {
    "beats_baseline": _beats_baseline,
    "not_below_champion": _not_below_champion,
}
