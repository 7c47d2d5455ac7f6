"""Who is champion, and why: list the registered versions, or change the champion by hand.

A version is judged by the rules of ``src.evaluation.promotion`` on the present holdout, compared
with the present champion. Patches that either saw in training are left out. Every change is logged.
"""

from __future__ import annotations

from typing import Annotated

import typer

from src import paths
from src.evaluation.comparison import (
    Candidate,
    check_golden,
    decision_tags,
    evidence_document,
    gather,
    read_holdout,
    verified_champion,
)
from src.evaluation.looks import Look
from src.evaluation.promotion import Decision, decide
from src.params import load_params
from src.system.cli import run
from src.system.determinism import start_scoring
from src.system.durable import read_json, sha256_file
from src.system.errors import ProjectError
from src.system.log import configure, get_logger

_NEXT = "dvc repro --single-item --force register predict"


class OptionError(ProjectError):
    """The options don't go together, or there is nothing to list."""


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
    from src.tracking import promotions, registry
    from src.tracking.listing import show_rules, show_versions
    from src.tracking.looks import archive_digest, look_of, n_looks

    name = params.register_.name
    if reject is not None:
        with promotions.one_at_a_time(name):
            promotions.reject(registry.find_version(name, reject), why=why)
        log.info(f"version {reject} of {name} is rejected: {why}")
        return
    if version is None and not rollback:
        show_versions(name)
        if paths.PREDICTIONS.is_file():
            archive = archive_digest()
            typer.echo(
                looks_so_far(Look(n_looks(archive) + 1, archive), params.evaluate.confidence)
            )
        return

    present = registry.champion_of(name)
    number = None if present is None else present.number
    if version is None:
        target = promotions.champion_before(name, number)
    elif version == number:
        log.info(f"version {version} of {name} is champion already")
        return
    else:
        target = registry.find_version(name, version)
    target.verify()  # before TensorFlow, which takes ten seconds to start
    start_scoring(params.runtime)
    from src.model.scorer import HoldoutScores

    scores = HoldoutScores(batch_size=params.runtime.inference_batch_size, log=log)
    if rollback:
        check_golden(target, scores)
        with promotions.one_at_a_time(name):
            promotions.roll_back(target, expected=number, why=why)
        log.info(f"version {target.number} of {name} is champion again")
    else:
        holdout = read_holdout(paths.PREDICTIONS)
        champion = verified_champion(present, scores, log)
        archive = archive_digest()
        look = Look(look_of(target, archive), archive)
        evidence, comparison = gather(
            target,
            champion,
            holdout,
            scores,
            look,
            params.register_,
            confidence=params.evaluate.confidence,
            is_evaluated=is_evaluated(target),
        )
        decision = decide(evidence)
        show_rules(target.number, decision.as_table())
        document = evidence_document(target, champion, decision, comparison)
        if decision.failed_integrity if force else decision.failed:
            promotions.refuse(target, document, decision_tags(decision, "not promoted"))
            raise promotions.PromotionRefused(
                f"version {version} of {name} is not promoted: {reasons(decision)}"
            )
        against = "" if decision.promote else f", against {', '.join(decision.failed)}"
        with promotions.one_at_a_time(name):
            promotions.promote(
                target,
                expected=number,
                document=document,
                said=decision_tags(decision, f"promoted{' against the rules' if against else ''}"),
                action="promote",
                why=why or "by the rules",
                forced=not decision.promote,
            )
        log.info(f"version {version} of {name} is champion{against}")
    if paths.REGISTRATION.is_file():
        predicts = read_json(paths.REGISTRATION)["predict_with"]["version"]
        if predicts != target.number:
            log.info(f"predict still uses version {predicts}; run: {_NEXT}")


def check_options(
    *, version: int | None, rollback: bool, reject: int | None, force: bool, why: str
) -> None:
    """Refuse what doesn't go together.

    Raises
    ------
    OptionError
        More than one thing is asked for, or a reason is missing.
    """
    if (version is not None) + rollback + (reject is not None) > 1:
        raise OptionError("--version, --rollback and --reject exclude each other; choose one")
    if force and version is None:
        raise OptionError("--force goes with --version N; see python -m src.promote --help")
    if (force or reject is not None) and not why.strip():
        raise OptionError('--force and --reject need a reason: add --why "…"')


def is_evaluated(version: Candidate) -> bool:
    """Whether ``predictions.parquet`` holds this very model's probabilities."""
    model = paths.FINAL_MODEL / "model.keras"
    return (
        model.is_file()
        and sha256_file(model) == version.model_sha256
        and sha256_file(paths.PREDICTIONS) == version.evidence.get("predictions_sha256")
    )


def reasons(decision: Decision) -> str:
    """Why a decision is against a version; if its files are at fault, that and nothing else."""
    if decision.failed_integrity:
        failed = (decision.checks[rule].reason for rule in decision.failed_integrity)
        return f"model verification failed: {'; '.join(failed)}"
    failed = (decision.checks[rule].reason for rule in decision.failed)
    return f'{"; ".join(failed)}; against the rules: add --force --why "…"'


def looks_so_far(next_look: Look, confidence: float) -> str:
    """How often the present holdout was looked at, and what that leaves for the next model."""
    level = 100 * next_look.confidence(confidence)
    return (
        f"{next_look.number - 1:,} models were judged on this archive; the next one is at "
        f"{level:.4g} % confidence"
    )


if __name__ == "__main__":
    run(main)
