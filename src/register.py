"""Register ``models/final`` and decide whether it becomes champion.

Which version makes the submission (``predict_with`` in ``registration.json``):

- the champion's, wherever one stands, with one exception: a champion that no person chose and that
  is surely below a challenger which itself failed the gate (a champion of another archive, say);
- the challenger's in that case and where no champion stands (there never was one, or its files
  don't verify), marked ``unpromoted``.
"""

from dataclasses import asdict
from logging import Logger
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from src import paths
from src.data.dataset import check_trained_here
from src.deciding import (
    Champion,
    Comparison,
    decision_tags,
    evidence_document,
    final_weights_sha256,
    gather,
    logits_of,
    read_holdout,
    rows_of,
    standing_champion,
)
from src.params import Params, load_params
from src.scoring import start
from src.system.cli import run
from src.system.durable import read_json, sha256_file, write_json
from src.system.log import configure, get_logger

if TYPE_CHECKING:
    import pandas as pd

    from src.evaluation.promotion import Decision, Evidence
    from src.tracking.aliases import AliasChanges
    from src.tracking.golden import Golden
    from src.tracking.registry import VersionFiles


def main() -> None:
    """Register models/final in MLflow, decide whether it becomes champion, and say why."""
    from src.tracking.aliases import alias_changes

    params = load_params()
    configure(params.runtime.verbosity)
    log = get_logger("register")
    # before TensorFlow, which takes ten seconds to start
    check_trained_here(paths.HEAD_MODEL, paths.FINETUNED_MODEL)
    start(params.runtime)
    # two at once would decide on the same champion, and the later alias would win unseen
    with alias_changes(params.register_.name) as changes:
        registration = decide(params, changes, log)
    report(registration, log)


def decide(params: Params, changes: "AliasChanges", log: Logger) -> dict[str, Any]:
    """Register the challenger, judge it beside the champion, move aliases, write the decision.

    Raises
    ------
    VerificationError
        Loaded from the registry it isn't the model that was evaluated; it gets no alias.
    """
    from src.evaluation import promotion

    name, holdout = params.register_.name, read_holdout(paths.PREDICTIONS)
    challenger = register_challenger(name, holdout)
    champion = standing_champion(name, log)
    evidence, comparison = gather(challenger, champion, holdout, params, is_evaluated=True, log=log)
    decision = promotion.decide(evidence)
    check_integrity(challenger, decision)
    point_challenger_at(challenger, changes)
    registration = registration_of(
        challenger,
        champion,
        evidence,
        comparison,
        decision,
        is_chosen=is_chosen_by_a_person(name),
    )
    record(registration, champion, comparison, decision, changes)
    write_json(paths.REGISTRATION, registration)
    return registration


def register_challenger(name: str, holdout: "pd.DataFrame") -> "VersionFiles":
    """Register ``models/final`` with its evidence; the version, loaded from the registry."""
    from src.tracking.registry import load_version, register_version

    metrics = read_json(paths.METRICS)
    run_id = run_with_metrics(paths.FINETUNED_MODEL, metrics)
    number = register_version(
        paths.FINAL_MODEL,
        name=name,
        run_id=run_id,
        evidence=evidence_of(metrics, run_id),
        golden_batch=golden_batch(holdout),
    )
    return load_version(name, number)


def point_challenger_at(challenger: "VersionFiles", changes: "AliasChanges") -> None:
    """Move the alias ``challenger``."""
    from src.tracking.registry import CHALLENGER, aliases

    changes.move(
        CHALLENGER,
        challenger.version,
        expected=aliases(challenger.name).get(CHALLENGER),
        action="register",
        why="the newest version",
    )


def golden_batch(holdout: "pd.DataFrame") -> "Golden":
    """Eight holdout patches, from the least to the most suspicious, and what ``models/final``
    says of them."""
    from src.data.dataset import load_split
    from src.model.inference import load_classifier
    from src.tracking.golden import Golden, golden_rows

    chosen = holdout.iloc[golden_rows(holdout["probability"].to_numpy())]
    patches = load_split("holdout")
    pixels: NDArray[np.uint8] = patches.pixels[rows_of(chosen["id"], patches)]
    return Golden(pixels, logits_of(load_classifier(paths.FINAL_MODEL), pixels))


def check_integrity(challenger: "VersionFiles", decision: "Decision") -> None:
    """Refuse a version that, loaded from the registry, isn't the model that was evaluated.

    Raises
    ------
    VerificationError
        A rule about what it is doesn't hold, such as that its probabilities are those of
        ``predictions.parquet``. The version's tag ``decision`` says so.
    """
    from src.tracking.logged_models import VerificationError
    from src.tracking.registry import set_version_tags

    if not decision.failed_integrity:
        return
    failed = [decision.checks[rule] for rule in decision.failed_integrity]
    reasons = "; ".join(f"{check.reason}, allowed {check.allowed}" for check in failed)
    reason = (
        f"model verification failed: version {challenger.version}: {reasons}; run: "
        "dvc repro --force evaluate"
    )
    set_version_tags(challenger.name, challenger.version, {"decision": f"not promoted: {reason}"})
    raise VerificationError(reason)


def evidence_of(metrics: dict[str, Any], run_id: str) -> dict[str, Any]:
    """All that is known of the model when it is registered; stays with the version."""
    ingested = read_json(paths.INGEST_REPORT)
    return {
        "auroc": metrics["holdout"]["auroc"],
        "baseline_auroc": metrics["baseline"]["auroc"],
        "metrics": metrics,
        "run_id": run_id,
        "runs": {
            folder.name: read_json(folder / "run.json")
            for folder in (paths.HEAD_MODEL, paths.FINETUNED_MODEL)
        },
        "final_weights_sha256": final_weights_sha256(),
        "predictions_sha256": sha256_file(paths.PREDICTIONS),
        "split_sha256": sha256_file(paths.SPLIT),
        "data": ingested["digests"],
        "archive": ingested["archive"],
    }


def registration_of(
    challenger: "VersionFiles",
    champion: Champion,
    evidence: "Evidence",
    comparison: Comparison | None,
    decision: "Decision",
    *,
    is_chosen: bool = False,
) -> dict[str, Any]:
    """What ``registration.json`` says; see the module's docstring for ``predict_with``.

    ``is_chosen``: a person made the present champion what it is.
    """
    winner = challenger if decision.promote else champion.files
    is_outscored = (
        comparison is not None
        and comparison.difference is not None
        and comparison.difference.above_zero
    )
    is_passed_over = (
        not decision.promote and is_outscored and not is_chosen and evidence.rejected is None
    )
    is_unpromoted = winner is None or is_passed_over
    predicts = challenger if winner is None or is_passed_over else winner
    return {
        "name": challenger.name,
        "challenger_version": challenger.version,
        "champion_version": None if winner is None else winner.version,
        "promoted": decision.promote,
        "reasons": decision.reasons,
        "rules": decision.as_table(),
        "challenger": {
            "version": challenger.version,
            "run_id": challenger.run_id,
            "auroc": challenger.evidence["auroc"],
            "baseline_auroc": challenger.evidence["baseline_auroc"],
            **asdict(evidence),
        },
        "champion": None if comparison is None else asdict(comparison),
        "predict_with": {
            "version": predicts.version,
            "manifest_sha256": predicts.manifest_sha256,
            "role": "unpromoted" if is_unpromoted else "champion",
        },
    }


def is_chosen_by_a_person(name: str) -> bool:
    """Whether ``promote`` made the present champion, and not this stage."""
    from src.tracking.aliases import read_log
    from src.tracking.promotion_log import champion_moves

    moves = champion_moves(read_log(name).entries)
    return bool(moves) and moves[-1].action in ("promote", "rollback")


def record(
    registration: dict[str, Any],
    champion: Champion,
    comparison: Comparison | None,
    decision: "Decision",
    changes: "AliasChanges",
) -> None:
    """Keep the evidence, point ``champion`` at a promoted challenger, tag the version."""
    from src.tracking.aliases import store_evidence
    from src.tracking.registry import CHAMPION, set_version_tags

    name, version = registration["name"], registration["challenger_version"]
    document = evidence_document(
        name, version, champion, decision, comparison, challenger=registration["challenger"]
    )
    evidence_sha256 = store_evidence(name, document)
    if decision.promote:
        changes.move(
            CHAMPION,
            version,
            expected=champion.version,
            action="register",
            why=decision.checks["not_worse_than_champion"].reason,
            evidence_sha256=evidence_sha256,
        )
    elif champion.version == version:
        return  # it is champion all the same, by force: its tags say since when and why
    verdict = "promoted" if decision.promote else "not promoted"
    tags = decision_tags(decision, verdict=verdict, evidence_sha256=evidence_sha256)
    set_version_tags(name, version, tags)


def report(registration: dict[str, Any], log: Logger) -> None:
    """Say what was decided, one fact a line."""
    challenger, predict_with = registration["challenger"], registration["predict_with"]
    log.info(
        f"{registration['name']} version {registration['challenger_version']}: holdout AUROC "
        f"{challenger['auroc']:.4f}, colour baseline {challenger['baseline_auroc']:.4f}"
    )
    for rule in registration["rules"]:
        log.info(f"{'holds' if rule['held'] else 'fails'}: {rule['rule']}: {rule['reason']}")
    verdict = "is champion" if registration["promoted"] else "stays challenger"
    log.info(f"version {registration['challenger_version']} {verdict}")
    log.info(f"predict uses version {predict_with['version']} ({predict_with['role']})")


def run_with_metrics(folder: Path, metrics: dict[str, Any]) -> str:
    """The run that made the model, restored if need be, with the metrics of its evaluation."""
    from src.tracking.runs import add_evaluation, ensure_run, lacks_metrics

    run_id = ensure_run(folder)
    if lacks_metrics(run_id, metrics):
        add_evaluation(run_id, metrics, {}, {})
    return run_id


if __name__ == "__main__":
    run(main)
