"""Whether a version becomes champion: a pure decision, with every reason.

To add a rule: write :class:`Evidence` → :class:`Check` and name it in ``PROMOTION_RULES``. All must
hold.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from src.evaluation.intervals import Difference
from src.evaluation.looks import Look

RELOAD_TOLERANCE = 1e-4  # in probability; float32 on other batch sizes stays well below
GOLDEN_TOLERANCE = 1e-3  # in logit; batch size, threads and oneDNN stay well below


@dataclass(frozen=True)
class Evidence:
    """What is known of a version on holdout.

    Attributes
    ----------
    to_baseline : AUROC against the colour baseline's on the same patches
    to_champion : AUROC against the champion's on the same patches; None without a champion
    no_champion : why there is none to compare with
    margin : AUROC by which a version may be worse than the champion
    n_groups : groups of the patches it was judged on that hold a class, by class
    min_groups : fewest groups per class
    look : which look at this holdout it is; the differences have the confidence that it leaves;
        None where nothing was judged
    reload_error : largest difference in probability between what was evaluated and what the
        version gives, loaded from the registry; None where only its loading could be checked
    golden_error : largest difference in logit from the golden batch stored with the version
    rejected : why a person rejected it; None where nobody did
    not_judged : rule → why it can't be judged; such a rule doesn't hold
    """

    to_baseline: Difference | None
    to_champion: Difference | None
    margin: float
    n_groups: Mapping[str, int]
    min_groups: int
    look: Look | None
    reload_error: float | None = None
    golden_error: float | None = None
    rejected: str | None = None
    no_champion: str = "no champion yet"
    not_judged: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Check:
    """One rule's outcome: the value that came, what is allowed, whether it held, in words.

    ``value`` is None where there is none, or it is no finite number.
    """

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
        """One sentence per rule, in order."""
        return [check.reason for check in self.checks.values()]

    @property
    def failed(self) -> list[str]:
        """Names of the rules that did not hold."""
        return [name for name, check in self.checks.items() if not check.held]

    @property
    def failed_integrity(self) -> list[str]:
        """Those of them that can't be forced."""
        return [name for name in self.failed if name in _OF_INTEGRITY]

    def as_table(self) -> list[dict[str, Any]]:
        """One row per rule: ``rule``, ``value``, ``allowed``, ``held``, ``reason``; for JSON."""
        return [{"rule": name, **asdict(check)} for name, check in self.checks.items()]


def decide(evidence: Evidence) -> Decision:
    """Apply every rule of ``PROMOTION_RULES``."""
    checks = {name: rule(evidence) for name, rule in PROMOTION_RULES.items()}
    for name, why in evidence.not_judged.items():
        checks[name] = replace(checks[name], value=None, held=False, reason=why)
    return Decision(all(check.held for check in checks.values()), checks)


def against_baseline(difference: Difference) -> str:
    """The verdict on a model against the colour baseline, word for word the same everywhere."""
    verb = "beats" if difference.above_zero else "does not beat"
    return f"{verb} the colour baseline: AUROC {difference}"


def _files_verified(evidence: Evidence) -> Check:  # noqa: ARG001
    return Check(None, "as registered", True, "every file is the one that was registered")


def _reloaded(evidence: Evidence) -> Check:
    error, allowed = evidence.reload_error, f"<= {RELOAD_TOLERANCE:g}"
    if error is None:
        return Check(None, allowed, True, "loads from the registry")
    reason = (
        f"loaded from the registry, its probabilities differ by up to {error:.2g} from those "
        "that were evaluated"
    )
    return Check(_finite(error), allowed, error <= RELOAD_TOLERANCE, reason)  # False for NaN


def _golden_batch(evidence: Evidence) -> Check:
    error, allowed = evidence.golden_error, f"<= {GOLDEN_TOLERANCE:g}"
    if error is None:
        return Check(None, allowed, False, "registered without a golden batch; register it again")
    held = error <= GOLDEN_TOLERANCE
    verb = "reproduces" if held else "does not reproduce"
    reason = f"{verb} its golden batch: logits differ by up to {error:.2g}"
    return Check(_finite(error), allowed, held, reason)


def _beats_baseline(evidence: Evidence) -> Check:
    difference = evidence.to_baseline
    if difference is None:
        return Check(None, "> 0", False, "not compared with the colour baseline")
    reason = f"{against_baseline(difference)}; {evidence.look}"
    return Check(difference.low, "> 0", difference.above_zero, reason)


def _not_worse_than_champion(evidence: Evidence) -> Check:
    difference = evidence.to_champion
    lowest = f"{-evidence.margin + 0.0:g}"  # + 0.0 turns -0 into 0
    if difference is None:
        return Check(None, f"> {lowest}", True, evidence.no_champion)
    held = difference.low > -evidence.margin
    reason = (
        f"{'is not worse' if held else 'may be worse'} than the champion on the same patches: "
        f"AUROC {difference}, the interval must be above {lowest}; {evidence.look}"
    )
    return Check(difference.low, f"> {lowest}", held, reason)


def _minimum_groups(evidence: Evidence) -> Check:
    fewest = min(evidence.n_groups.values(), default=0)
    counts = ", ".join(f"{n:,} hold {name} patches" for name, n in evidence.n_groups.items())
    reason = f"of the holdout groups {counts or 'none count'}"
    return Check(fewest, f">= {evidence.min_groups}", fewest >= evidence.min_groups, reason)


def _not_rejected(evidence: Evidence) -> Check:
    why = evidence.rejected
    reason = "nobody rejected it" if why is None else f"was rejected: {why}"
    return Check(None, "not rejected", why is None, reason)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None  # JSON has no NaN


PROMOTION_RULES: dict[str, Callable[[Evidence], Check]] = {
    "files_verified": _files_verified,
    "reloaded": _reloaded,
    "golden_batch": _golden_batch,
    "beats_baseline": _beats_baseline,
    "not_worse_than_champion": _not_worse_than_champion,
    "minimum_groups": _minimum_groups,
    "not_rejected": _not_rejected,
}
_OF_INTEGRITY = ("files_verified", "reloaded", "golden_batch")
"""Whether the version is what was registered: not even a forced promotion skips these."""
