"""Whether a version becomes champion: a pure decision, with every reason.

To add a rule: write what is allowed and a judge, both of :class:`Evidence`, and name them in
``PROMOTION_RULES``. All must hold.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
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
    to_champion : AUROC against the champion's on the same patches; None where none stands
    no_champion : why there is none to compare with
    margin : AUROC by which a version may be worse than the champion
    n_groups : groups of the patches it was judged on that hold a class, by class
    min_groups : fewest groups a class
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
class Rule:
    """What a rule allows, in words, and how it judges: value, whether it holds, the reason.

    ``of_integrity`` marks a rule that not even a forced promotion passes over: one about whether
    the version is what was registered, not about how good it is.
    """

    allowed: Callable[[Evidence], str]
    judge: Callable[[Evidence], tuple[float | None, bool, str]]
    of_integrity: bool = False


@dataclass(frozen=True)
class Decision:
    """``promote`` is True where every check, by name of its rule, held."""

    promote: bool
    checks: dict[str, Check]

    @property
    def reasons(self) -> list[str]:
        """One sentence a rule, in order."""
        return [check.reason for check in self.checks.values()]

    @property
    def failed(self) -> list[str]:
        """Names of the rules that did not hold."""
        return [name for name, check in self.checks.items() if not check.held]

    @property
    def failed_integrity(self) -> list[str]:
        """Those of them that can't be forced."""
        return [name for name in self.failed if PROMOTION_RULES[name].of_integrity]

    def as_table(self) -> list[dict[str, Any]]:
        """One row a rule: ``rule``, ``value``, ``allowed``, ``held``, ``reason``; for JSON."""
        return [{"rule": name, **asdict(check)} for name, check in self.checks.items()]


def decide(evidence: Evidence) -> Decision:
    """Apply every rule of ``PROMOTION_RULES``."""
    checks = {name: _check(name, rule, evidence) for name, rule in PROMOTION_RULES.items()}
    return Decision(all(check.held for check in checks.values()), checks)


def _check(name: str, rule: Rule, evidence: Evidence) -> Check:
    allowed = rule.allowed(evidence)
    if name in evidence.not_judged:
        return Check(None, allowed, held=False, reason=evidence.not_judged[name])
    value, held, reason = rule.judge(evidence)
    known = value if value is not None and math.isfinite(value) else None  # JSON has no NaN
    return Check(known, allowed, held, reason)


def _files_verified(evidence: Evidence) -> tuple[float | None, bool, str]:  # noqa: ARG001
    return None, True, "every file is the one that was registered"


def _reloaded(evidence: Evidence) -> tuple[float | None, bool, str]:
    error = evidence.reload_error
    if error is None:
        return None, True, "loads from the registry"
    return (
        error,
        error <= RELOAD_TOLERANCE,  # False for NaN
        f"loaded from the registry, its probabilities differ by up to {error:.2g} from those "
        "that were evaluated",
    )


def _golden_batch(evidence: Evidence) -> tuple[float | None, bool, str]:
    error = evidence.golden_error
    if error is None:
        return None, False, "registered without a golden batch; register it again"
    held = error <= GOLDEN_TOLERANCE
    verb = "reproduces" if held else "does not reproduce"
    return error, held, f"{verb} its golden batch: logits differ by up to {error:.2g}"


def _beats_baseline(evidence: Evidence) -> tuple[float | None, bool, str]:
    difference = evidence.to_baseline
    if difference is None:
        return None, False, "not compared with the colour baseline"
    reason = f"{against_baseline(difference)}; {evidence.look}"
    return difference.low, difference.above_zero, reason


def against_baseline(difference: Difference) -> str:
    """The verdict on a model beside the colour baseline, word for word the same everywhere."""
    verb = "beats" if difference.above_zero else "does not beat"
    return f"{verb} the colour baseline: AUROC {difference}"


def _not_worse_than_champion(evidence: Evidence) -> tuple[float | None, bool, str]:
    difference = evidence.to_champion
    if difference is None:
        return None, True, evidence.no_champion
    held = difference.low > -evidence.margin
    verb = "is not worse" if held else "may be worse"
    return (
        difference.low,
        held,
        f"{verb} than the champion on the same patches: AUROC {difference}, the interval must "
        f"be above {_lowest(evidence)}; {evidence.look}",
    )


def _minimum_groups(evidence: Evidence) -> tuple[float | None, bool, str]:
    fewest = min(evidence.n_groups.values(), default=0)
    counts = ", ".join(f"{n:,} hold {name} patches" for name, n in evidence.n_groups.items())
    reason = f"of the holdout groups {counts or 'none count'}"
    return fewest, fewest >= evidence.min_groups, reason


def _not_rejected(evidence: Evidence) -> tuple[float | None, bool, str]:
    if evidence.rejected is None:
        return None, True, "nobody rejected it"
    return None, False, f"was rejected: {evidence.rejected}"


def _lowest(evidence: Evidence) -> str:
    return f"{-evidence.margin + 0.0:g}"  # + 0.0 turns -0 into 0


PROMOTION_RULES: dict[str, Rule] = {
    "files_verified": Rule(lambda _: "as registered", _files_verified, of_integrity=True),
    "reloaded": Rule(lambda _: f"<= {RELOAD_TOLERANCE:g}", _reloaded, of_integrity=True),
    "golden_batch": Rule(lambda _: f"<= {GOLDEN_TOLERANCE:g}", _golden_batch, of_integrity=True),
    "beats_baseline": Rule(lambda _: "> 0", _beats_baseline),
    "not_worse_than_champion": Rule(lambda e: f"> {_lowest(e)}", _not_worse_than_champion),
    "minimum_groups": Rule(lambda e: f">= {e.min_groups}", _minimum_groups),
    "not_rejected": Rule(lambda _: "not rejected", _not_rejected),
}
