"""Register ``models/final`` and decide whether it becomes champion.

Which version makes the submission (``predict_with`` in ``registration.json``):

- the champion's, if there is one that can be verified, with one exception: a champion that no
  person chose and that is significantly below a challenger which itself failed the gate (a champion
  of another archive, say);
- the challenger's in that case, and if there is no champion (there never was one, or its files
  can't be verified), marked ``unpromoted``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from logging import Logger
from typing import Any

import numpy as np
from numpy.typing import NDArray

from src import paths
from src.data.dataset import check_trained_here, load_split
from src.evaluation.comparison import (
    Candidate,
    Champion,
    Comparison,
    decision_tags,
    evidence_document,
    gather,
    read_holdout,
    verified_champion,
)
from src.evaluation.looks import Look
from src.evaluation.promotion import Decision, Evidence, decide
from src.params import load_params
from src.system.cli import run
from src.system.determinism import start_scoring
from src.system.durable import read_json, sha256_file, write_json
from src.system.errors import VerificationError
from src.system.log import configure, get_logger

N_GOLDEN = 8


def main() -> None:
    """Register models/final in MLflow, decide whether it becomes champion, and say why."""
    params = load_params()
    configure(params.runtime.verbosity)
    log = get_logger("register")
    # before TensorFlow, which takes ten seconds to start
    check_trained_here(paths.HEAD_MODEL, paths.FINETUNED_MODEL)
    start_scoring(params.runtime)
    from src.model.inference import load_classifier
    from src.model.scorer import HoldoutScores, logits_of, rows_of
    from src.tracking import promotions, registry
    from src.tracking.looks import archive_digest, final_weights_sha256, look_of
    from src.tracking.runs import run_with_metrics

    name, holdout = params.register_.name, read_holdout(paths.PREDICTIONS)
    # two at once would decide on the same champion, and the later alias would win unseen
    with promotions.one_at_a_time(name):
        metrics = read_json(paths.METRICS)
        run_id = run_with_metrics(paths.FINETUNED_MODEL, metrics)
        chosen = holdout.iloc[golden_rows(holdout["probability"].to_numpy())]
        patches = load_split("holdout")
        pixels = patches.pixels[rows_of(chosen["id"], patches)]
        challenger = registry.register_version(
            paths.FINAL_MODEL,
            name=name,
            run_id=run_id,
            evidence=evidence_of(metrics, run_id, final_weights_sha256()),
            golden=(pixels, logits_of(load_classifier(paths.FINAL_MODEL), pixels)),
        )

        scores = HoldoutScores(batch_size=params.runtime.inference_batch_size, log=log)
        champion = verified_champion(registry.champion_of(name), scores, log)
        archive = archive_digest()
        look = Look(look_of(challenger, archive), archive)
        evidence, comparison = gather(
            challenger,
            champion,
            holdout,
            scores,
            look,
            params.register_,
            confidence=params.evaluate.confidence,
            is_evaluated=True,
        )
        decision = decide(evidence)
        if decision.failed_integrity:
            reason = integrity_reason(decision, challenger.number)
            challenger.set_tags({"decision": f"not promoted: {reason}"})
            raise VerificationError(reason)

        promotions.make_challenger(challenger)
        registration = registration_of(
            challenger,
            champion,
            evidence,
            comparison,
            decision,
            is_chosen=promotions.is_chosen_by_a_person(name),
        )
        document = evidence_document(
            challenger, champion, decision, comparison, challenger=registration["challenger"]
        )
        if decision.promote:
            promotions.promote(
                challenger,
                expected=champion.number,
                document=document,
                said=decision_tags(decision, "promoted"),
                action="register",
                why=decision.checks["not_worse_than_champion"].reason,
            )
        # a champion by force keeps its tags, which say since when and why
        elif champion.number != challenger.number:
            promotions.refuse(challenger, document, decision_tags(decision, "not promoted"))
        write_json(paths.REGISTRATION, registration)
    report(registration, log)


def golden_rows(scores: NDArray[np.float64]) -> NDArray[np.int64]:
    """Positions of 8 patches, spread evenly over the ranks of their scores (n,), both ends among
    them: a model that says the same of every patch can't reproduce their logits.
    """
    ranked = np.argsort(scores, kind="stable")
    places = np.linspace(0, len(ranked) - 1, min(N_GOLDEN, len(ranked)))
    return ranked[places.round().astype(np.int64)]


def evidence_of(metrics: Mapping[str, Any], run_id: str, weights_sha256: str) -> dict[str, Any]:
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
        "final_weights_sha256": weights_sha256,
        "predictions_sha256": sha256_file(paths.PREDICTIONS),
        "split_sha256": sha256_file(paths.SPLIT),
        "data": ingested["digests"],
        "archive": ingested["archive"],
    }


def integrity_reason(decision: Decision, number: int) -> str:
    """Why a version, loaded from the registry, isn't the model that was evaluated."""
    failed = [decision.checks[rule] for rule in decision.failed_integrity]
    reasons = "; ".join(f"{check.reason}, allowed {check.allowed}" for check in failed)
    return (
        f"model verification failed: version {number}: {reasons}; run: dvc repro --force evaluate"
    )


def registration_of(
    challenger: Candidate,
    champion: Champion,
    evidence: Evidence,
    comparison: Comparison | None,
    decision: Decision,
    *,
    is_chosen: bool,
) -> dict[str, Any]:
    """What ``registration.json`` says; see the module's docstring for ``predict_with``.

    ``is_chosen``: a person made the present champion what it is.
    """
    winner = challenger if decision.promote else champion.version
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
        "challenger_version": challenger.number,
        "champion_version": None if winner is None else winner.number,
        "promoted": decision.promote,
        "reasons": decision.reasons,
        "rules": decision.as_table(),
        "challenger": {
            "version": challenger.number,
            "run_id": challenger.run_id,
            "auroc": challenger.evidence["auroc"],
            "baseline_auroc": challenger.evidence["baseline_auroc"],
            **asdict(evidence),
        },
        "champion": None if comparison is None else asdict(comparison),
        "predict_with": {
            "version": predicts.number,
            "manifest_sha256": predicts.manifest_sha256,
            "role": "unpromoted" if is_unpromoted else "champion",
        },
    }


def report(registration: Mapping[str, Any], log: Logger) -> None:
    """Say what was decided, one fact per line."""
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


if __name__ == "__main__":
    run(main)
