"""Who is champion, and why: list the registered versions, or change the champion by hand.

A version is judged by the rules of ``src.evaluation.promotion`` on the present holdout, beside the
present champion. Patches that either saw in training are left out. Every change is logged.
"""

from dataclasses import dataclass
from logging import Logger
from typing import TYPE_CHECKING, Annotated, Any

import typer

from src import paths
from src.deciding import (
    Champion,
    Comparison,
    check_golden,
    decision_tags,
    evidence_document,
    gather,
    read_holdout,
    standing_champion,
)
from src.evaluation.looks import Look, holdout_sha256
from src.params import Params, load_params
from src.scoring import start
from src.system.cli import run
from src.system.durable import read_json, sha256_file
from src.system.errors import ProjectError
from src.system.log import configure, get_logger

if TYPE_CHECKING:
    from src.evaluation.promotion import Decision, Evidence
    from src.tracking.registry import VersionFiles

_NEXT = "dvc repro --single-item --force register predict"
# how the tag ``rejected`` begins where no person rejected the version itself
_REPLACED, _ROLLED_BACK = "replaced by force with version", "rolled back:"


class PromotionRefused(ProjectError):
    """A version may not become champion, or what was asked for can't be done."""


@dataclass(frozen=True)
class Judgement:
    """What the rules say of a version, and what that rests on."""

    version: int
    champion: Champion
    decision: "Decision"
    comparison: Comparison | None
    document: dict[str, Any]


def main(
    version: Annotated[
        int | None, typer.Option(help="Promote this version if the rules allow it.", min=1)
    ] = None,
    rollback: Annotated[
        bool, typer.Option("--rollback", help="Go back to the champion before this one.")
    ] = False,
    reject: Annotated[
        int | None, typer.Option(help="Never promote this version; needs --why.", min=1)
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="With --version: against the rules; needs --why.")
    ] = False,
    why: Annotated[str, typer.Option(help="The reason; goes into the promotion log.")] = "",
) -> None:
    """List the registered versions with their evidence and history, or change the champion.

    Examples:

    * python -m src.promote

    * python -m src.promote --version 3

    * python -m src.promote --version 3 --force --why "only 4 slides in holdout, checked by hand"

    * python -m src.promote --rollback --why "wrong on slides of the new scanner"

    * python -m src.promote --reject 4 --why "trained on a mislabelled slide"

    --force passes over every rule except those about the files: what isn't the model that was
    registered is never promoted.
    """
    check_options(version=version, rollback=rollback, reject=reject, force=force, why=why)
    params = load_params()
    configure(params.runtime.verbosity)
    log = get_logger("promote")
    name = params.register_.name
    if version is not None:
        promote(params, version, force=force, why=why, log=log)
    elif rollback:
        roll_back(params, why=why, log=log)
    elif reject is not None:
        reject_version(name, reject, why=why, log=log)
    else:
        list_versions(name)


def check_options(
    *, version: int | None, rollback: bool, reject: int | None, force: bool, why: str
) -> None:
    """Refuse what doesn't go together.

    Raises
    ------
    PromotionRefused
        More than one thing is asked for, or a reason is missing.
    """
    if (version is not None) + rollback + (reject is not None) > 1:
        raise PromotionRefused("--version, --rollback and --reject exclude each other; choose one")
    if force and version is None:
        raise PromotionRefused("--force goes with --version N; see python -m src.promote --help")
    if (force or reject is not None) and not why.strip():
        raise PromotionRefused('--force and --reject need a reason: add --why "…"')


def promote(params: Params, version: int, *, force: bool, why: str, log: Logger) -> None:
    """Judge a version and make it champion, by the rules or, with ``force``, against them.

    Raises
    ------
    PromotionRefused
        A rule doesn't hold; or, with ``force``, one about its files doesn't.
    PromotionConflict
        Another promotion was faster.
    """
    from src.tracking.registry import champion_version

    name = params.register_.name
    if champion_version(name) == version:
        log.info(f"version {version} of {name} is champion already")
        return
    judgement = judge(params, version, log)
    show_rules(judgement)
    decision = judgement.decision
    if decision.failed_integrity if force else decision.failed:
        _note_refusal(name, judgement)
        raise PromotionRefused(f"version {version} of {name} is not promoted: {_reasons(decision)}")
    is_forced = not decision.promote
    make_champion(name, judgement, is_forced=is_forced, why=why)
    against = f", against {', '.join(decision.failed)}" if is_forced else ""
    log.info(f"version {version} of {name} is champion{against}")
    say_next(version, log)


def _reasons(decision: "Decision") -> str:
    """Why a decision is against a version; where its files are at fault, that and nothing else."""
    failed = decision.failed_integrity or decision.failed
    reasons = "; ".join(decision.checks[rule].reason for rule in failed)
    if not decision.failed_integrity:
        return f'{reasons}; against the rules: add --force --why "…"'
    called = "model verification failed: "
    return called + reasons.removeprefix(called)


def judge(params: Params, version: int, log: Logger) -> Judgement:
    """Apply the rules to a version on the present holdout, beside the present champion."""
    from src.evaluation import promotion
    from src.tracking.logged_models import VerificationError
    from src.tracking.registry import champion_version, load_version, verify_version

    name = params.register_.name
    rejected = _tags(name, version).get("rejected")
    try:
        verify_version(name, version)  # before TensorFlow, which takes ten seconds to start
    except VerificationError as error:
        champion = Champion(champion_version(name), absent="not looked at")
        evidence = _unjudged(params, "files_verified", str(error), rejected)
        return _judgement(name, version, champion, promotion.decide(evidence), None)
    start(params.runtime)
    champion = standing_champion(name, log)
    try:
        files = load_version(name, version)
    except VerificationError as error:
        evidence = _unjudged(params, "reloaded", str(error), rejected)
        return _judgement(name, version, champion, promotion.decide(evidence), None)
    holdout = read_holdout(paths.PREDICTIONS)
    is_evaluated = _is_evaluated(files)
    evidence, comparison = gather(
        files, champion, holdout, params, is_evaluated=is_evaluated, log=log
    )
    return _judgement(name, version, champion, promotion.decide(evidence), comparison)


def _is_evaluated(files: "VersionFiles") -> bool:
    """Whether ``predictions.parquet`` holds this very model's probabilities."""
    model = paths.FINAL_MODEL / "model.keras"
    return (
        model.is_file()
        and sha256_file(model) == files.model_sha256
        and sha256_file(paths.PREDICTIONS) == files.evidence.get("predictions_sha256")
    )


def _unjudged(params: Params, rule: str, reason: str, rejected: str | None) -> "Evidence":
    """Evidence of a version that fails ``rule`` so early that others can't be judged."""
    from src.evaluation.promotion import PROMOTION_RULES, Evidence

    rules = list(PROMOTION_RULES)
    later = rules[rules.index(rule) + 1 : rules.index("not_rejected")]
    return Evidence(
        to_baseline=None,
        to_champion=None,
        margin=params.register_.margin,
        n_groups={},
        min_groups=params.register_.min_groups,
        look=None,
        rejected=rejected,
        not_judged={rule: reason, **dict.fromkeys(later, "not judged: it can't be loaded")},
    )


def _judgement(
    name: str,
    version: int,
    champion: Champion,
    decision: "Decision",
    comparison: Comparison | None,
) -> Judgement:
    document = evidence_document(name, version, champion, decision, comparison)
    return Judgement(version, champion, decision, comparison, document)


def _tags(name: str, version: int) -> dict[str, str]:
    from src.tracking.registry import version_tags

    return version_tags(name, version)


def _note_refusal(name: str, judgement: Judgement) -> None:
    from src.tracking.aliases import store_evidence
    from src.tracking.registry import set_version_tags

    sha256 = store_evidence(name, judgement.document)
    tags = decision_tags(judgement.decision, verdict="not promoted", evidence_sha256=sha256)
    set_version_tags(name, judgement.version, tags)


def make_champion(name: str, judgement: Judgement, *, is_forced: bool, why: str) -> None:
    """Keep the evidence, move the alias, tag the version.

    After a forced promotion the champion it replaced counts as rejected: otherwise the next
    ``register`` might put it back by the rules that were passed over.
    """
    from src.tracking.aliases import alias_changes, store_evidence
    from src.tracking.registry import CHAMPION, drop_version_tag, set_version_tags

    version, champion = judgement.version, judgement.champion
    sha256 = store_evidence(name, judgement.document)
    with alias_changes(name) as changes:
        changes.move(
            CHAMPION,
            version,
            expected=champion.version,
            action="promote",
            why=why or "by the rules",
            evidence_sha256=sha256,
            forced=is_forced,
        )
        verdict = "promoted against the rules" if is_forced else "promoted"
        tags = decision_tags(judgement.decision, verdict=verdict, evidence_sha256=sha256)
        outdated = {"rejected"} if is_forced else {"forced", "forced_why"}
        for key in outdated & set(_tags(name, version)):
            drop_version_tag(name, version, key)
        if is_forced:
            tags |= {"forced": "true", "forced_why": why}
            if champion.version is not None:
                replaced = f"{_REPLACED} {version}: {why}"
                set_version_tags(name, champion.version, {"rejected": replaced})
        set_version_tags(name, version, tags)


def roll_back(params: Params, *, why: str, log: Logger) -> None:
    """Make the champion before the present one champion again; the present one is rejected.

    Raises
    ------
    PromotionRefused
        The log knows none, that version isn't what it was, or a person rejected it.
    PromotionConflict
        Another promotion was faster.
    """
    from src.tracking.aliases import alias_changes
    from src.tracking.registry import CHAMPION, champion_version, drop_version_tag, set_version_tags

    name = params.register_.name
    with alias_changes(name) as changes:
        changes.settle()  # a change that was broken off is no step to go back
    present = champion_version(name)
    target = version_before(name, present)
    check_not_rejected(name, target)
    check_unchanged(params, target)
    with alias_changes(name) as changes:
        changes.move(CHAMPION, target, expected=present, action="rollback", why=why or "no reason")
        if present is not None:
            set_version_tags(name, present, {"rejected": f"{_ROLLED_BACK} {why or 'no reason'}"})
        if "rejected" in _tags(name, target):
            drop_version_tag(name, target, "rejected")
    log.info(f"version {target} of {name} is champion again")
    say_next(target, log)


def check_not_rejected(name: str, version: int) -> None:
    """Refuse a version that a person rejected; one that only was left or replaced may come back.

    Raises
    ------
    PromotionRefused
        With the person's reason.
    """
    why = _tags(name, version).get("rejected")
    if why is not None and not why.startswith((_REPLACED, _ROLLED_BACK)):
        raise PromotionRefused(
            f"version {version} of {name}, champion before this one, was rejected: {why}; choose "
            "another: python -m src.promote --version N, or against the rejection this one: "
            f'--version {version} --force --why "…"'
        )


def version_before(name: str, present: int | None) -> int:
    """The champion before ``present``, by the promotion log.

    Raises
    ------
    PromotionRefused
        There was none, or another version has its number now.
    """
    from src.tracking.aliases import read_log
    from src.tracking.promotion_log import champions

    led_here = champions(read_log(name).entries)
    if led_here and led_here[-1][0] == present:
        led_here.pop()
    if not led_here:
        raise PromotionRefused(
            f"the promotion log of {name} knows no champion before "
            f"{'this one' if present is None else f'version {present}'}; choose one: "
            "python -m src.promote --version N"
        )
    target, manifest_sha256 = led_here[-1]
    if _tags(name, target).get("manifest_sha256") != manifest_sha256:
        raise PromotionRefused(
            f"version {target} of {name} is not the one that was champion: the registry was made "
            "anew; choose one: python -m src.promote --version N"
        )
    return target


def check_unchanged(params: Params, version: int) -> None:
    """Refuse a version whose files changed, or that doesn't give its golden logits any more.

    Raises
    ------
    VerificationError
        What is wrong, in one line.
    """
    from src.tracking.registry import load_version, verify_version

    name = params.register_.name
    verify_version(name, version)
    start(params.runtime)
    check_golden(load_version(name, version))


def reject_version(name: str, version: int, *, why: str, log: Logger) -> None:
    """Mark a version so that the rules never promote it; it loses the alias ``challenger``.

    Raises
    ------
    PromotionRefused
        It is the champion.
    """
    from src.tracking.aliases import alias_changes
    from src.tracking.registry import CHALLENGER, CHAMPION, aliases, set_version_tags

    _tags(name, version)  # refuses a version that isn't there
    with alias_changes(name) as changes:
        now = aliases(name)
        if now.get(CHAMPION) == version:
            raise PromotionRefused(
                f"version {version} of {name} is champion; run: python -m src.promote --rollback "
                '--why "…", which rejects it as well'
            )
        changes.note("reject", why, version=version)
        set_version_tags(name, version, {"rejected": why})
        if now.get(CHALLENGER) == version:
            changes.move(CHALLENGER, None, expected=version, action="reject", why=why)
    log.info(f"version {version} of {name} is rejected: {why}")


def say_next(version: int, log: Logger) -> None:
    """Say so where the submission would still be made with another version."""
    if not paths.REGISTRATION.is_file():
        return
    predicts = read_json(paths.REGISTRATION)["predict_with"]["version"]
    if predicts != version:
        log.info(f"predict still uses version {predicts}; run: {_NEXT}")


def show_rules(judgement: Judgement) -> None:
    """Print a row a rule."""
    from src.tracking.listing import rules_table

    _print(rules_table(judgement.version, judgement.decision.as_table()))


def list_versions(name: str) -> None:
    """Print versions, the evidence of their last decision, and the promotion log.

    Raises
    ------
    PromotionRefused
        Nothing is registered.
    """
    from src.tracking.listing import history_table, read_states, versions_table

    states, reading = read_states(name)
    if not states:
        raise PromotionRefused(f"no version of {name} is registered; run: dvc repro register")
    _print(versions_table(name, states), history_table(reading.entries))
    if paths.PREDICTIONS.is_file():
        _print(looks_so_far(load_params().evaluate.confidence))
    for problem in reading.problems:
        _print(f"[bold red]promotion log: {problem}[/]")
    broken = [state for state in states if state.broken]
    for state in broken:
        _print(f"[bold red]version {state.version}: {state.broken}[/]")


def looks_so_far(confidence: float) -> str:
    """How often the present holdout was looked at, and what that leaves for the next model."""
    from src.tracking.looks import n_looks

    digest = holdout_sha256(read_holdout(paths.PREDICTIONS))
    n = n_looks(digest)
    level = 100 * Look(n + 1, digest).confidence(confidence)
    return f"{n:,} models were judged on this holdout; the next one is at {level:.4g} % confidence"


def _print(*things: Any) -> None:
    from rich.console import Console

    # on a terminal its width, else wide enough for a file or a pager
    console = Console() if Console().is_terminal else Console(width=160)
    for thing in things:
        console.print(thing)


if __name__ == "__main__":
    run(main)
