"""Register ``models/final`` and decide whether it becomes champion.

Which version makes the submission (``predict_with`` in ``registration.json``):

- the champion's, wherever one stands, with one exception: a champion that no person chose and that
  is surely below a challenger which itself failed the gate (a champion of another archive, say);
- the challenger's in that case and where no champion stands (there never was one, or its files
  don't verify), marked ``unpromoted``.
"""

from dataclasses import asdict, dataclass
from logging import Logger
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from src import paths
from src.deciding import (
    Champion,
    Comparison,
    compare,
    decision_tags,
    evidence_document,
    final_weights_sha256,
    groups_by_class,
    read_holdout,
    reload_error,
    rows_of,
    score,
    standing_champion,
    start,
)
from src.params import Params, load_params
from src.system.cli import run
from src.system.durable import read_json, sha256_file, verify_folder, write_json
from src.system.log import configure, get_logger

if TYPE_CHECKING:
    import pandas as pd

    from src.evaluation.intervals import Difference
    from src.evaluation.promotion import Decision
    from src.tracking.aliases import AliasChanges


@dataclass(frozen=True)
class Challenger:
    """The version just registered, and how it does on holdout.

    ``reload_error`` and ``golden_error``: see ``src.evaluation.promotion.Evidence``. ``rejected``
    is why a person rejected it before, None where nobody did.
    """

    version: int
    run_id: str
    auroc: float
    baseline_auroc: float
    to_baseline: "Difference"
    reload_error: float = 0.0
    golden_error: float = 0.0
    rejected: str | None = None


def main() -> None:
    """Register models/final in MLflow, decide whether it becomes champion, and say why."""
    from src.tracking.aliases import alias_changes

    params = load_params()
    configure(params.runtime.verbosity)
    log = get_logger("register")
    start(params)
    # two at once would decide on the same champion, and the later alias would win unseen
    with alias_changes(params.register_.name) as changes:
        registration = decide(params, changes, log)
    report(registration, log)


def decide(params: Params, changes: "AliasChanges", log: Logger) -> dict[str, Any]:
    """Register the challenger, judge it beside the champion, move aliases, write the decision."""
    holdout = read_holdout(paths.PREDICTIONS)
    challenger = register_challenger(params, holdout, changes, log)
    champion = standing_champion(params.register_.name, log)
    comparison = compare_with_champion(champion, challenger, params, holdout, log)
    decision = judge(challenger, champion, comparison, params, groups_by_class(holdout))
    registration = registration_of(
        challenger,
        champion,
        comparison,
        decision,
        name=params.register_.name,
        is_chosen=is_chosen_by_a_person(params.register_.name),
    )
    record(registration, challenger, champion, comparison, decision, changes)
    write_json(paths.REGISTRATION, registration)
    return registration


def register_challenger(
    params: Params, holdout: "pd.DataFrame", changes: "AliasChanges", log: Logger
) -> Challenger:
    """Register ``models/final`` with its evidence, check that it reloads; alias ``challenger``.

    Raises
    ------
    VerificationError
        Loaded from the registry it isn't the model that was evaluated; it gets no alias.
    """
    from src.tracking.golden import golden_error
    from src.tracking.registry import CHALLENGER, aliases, load_version, register_version

    name, metrics = params.register_.name, read_json(paths.METRICS)
    run_id = run_with_metrics(paths.FINETUNED_MODEL, metrics)
    evidence = evidence_of(metrics, run_id)
    number = register_version(
        paths.FINAL_MODEL,
        name=name,
        run_id=run_id,
        evidence=evidence,
        golden_patches=golden_patches(holdout),
    )
    version = load_version(name, number)
    challenger = Challenger(
        number,
        run_id,
        auroc=evidence["auroc"],
        baseline_auroc=evidence["baseline_auroc"],
        to_baseline=_to_baseline(metrics),
        reload_error=reload_error(version, holdout, params.runtime.inference_batch_size, log),
        golden_error=golden_error(version.model, version.golden) if version.golden else np.nan,
        rejected=version.tags.get("rejected"),
    )
    check_integrity(name, challenger)
    changes.move(
        CHALLENGER,
        number,
        expected=aliases(name).get(CHALLENGER),
        action="register",
        why="the newest version",
    )
    return challenger


def golden_patches(holdout: "pd.DataFrame") -> NDArray[np.uint8]:
    """Eight holdout patches (8, 96, 96, 3), from the least to the most suspicious."""
    from src.data.labelled import load_split
    from src.tracking.golden import golden_rows

    chosen = holdout.iloc[golden_rows(holdout["probability"].to_numpy())]
    patches = load_split("holdout")
    pixels: NDArray[np.uint8] = patches.pixels[rows_of(chosen["id"], patches)]
    return pixels


def check_integrity(name: str, challenger: Challenger) -> None:
    """Refuse a version that, loaded from the registry, isn't the model that was evaluated.

    Raises
    ------
    VerificationError
        Its probabilities differ from those of ``predictions.parquet``, or its logits from those
        of the golden batch. The version's tag ``decision`` says so.
    """
    from src.evaluation.promotion import GOLDEN_TOLERANCE, RELOAD_TOLERANCE
    from src.tracking.logged_models import VerificationError
    from src.tracking.registry import set_version_tags

    found = (
        (challenger.reload_error, RELOAD_TOLERANCE, "probability from predictions.parquet"),
        (challenger.golden_error, GOLDEN_TOLERANCE, "logit from its golden batch"),
    )
    for error, tolerance, what in found:
        if not error <= tolerance:  # also True for NaN
            reason = (
                f"model verification failed: version {challenger.version}, loaded from the "
                f"registry, differs by up to {error:.2g} in {what}, allowed {tolerance:g}; run: "
                "dvc repro --force evaluate"
            )
            set_version_tags(name, challenger.version, {"decision": f"not promoted: {reason}"})
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
            if (folder / "run.json").is_file()
        },
        "final_weights_sha256": final_weights_sha256(),
        "final_files_sha256": verify_folder(paths.FINAL_MODEL),
        "predictions_sha256": sha256_file(paths.PREDICTIONS),
        "split_sha256": sha256_file(paths.SPLIT),
        "data": ingested["digests"],
        "archive": ingested["archive"],
    }


def _to_baseline(metrics: dict[str, Any]) -> "Difference":
    from src.evaluation.intervals import Difference

    difference = metrics["difference_to_baseline"]
    return Difference(difference["auroc"], difference["auroc_low"], difference["auroc_high"])


def compare_with_champion(
    champion: Champion,
    challenger: Challenger,
    params: Params,
    holdout: "pd.DataFrame",
    log: Logger,
) -> Comparison | None:
    """The comparison with a champion that stands and is another version; else None."""
    if champion.files is None or champion.version == challenger.version:
        return None
    if champion.files.evidence.get("final_weights_sha256") == final_weights_sha256():
        probabilities = holdout["probability"].to_numpy()
    else:
        batch_size = params.runtime.inference_batch_size
        probabilities = score(champion.files, holdout["id"], batch_size, log)
    return compare(champion.files, holdout, probabilities, params.evaluate)


def judge(
    challenger: Challenger,
    champion: Champion,
    comparison: Comparison | None,
    params: Params,
    n_groups: dict[str, int],
) -> "Decision":
    """Apply the promotion rules. ``n_groups`` are holdout's groups that hold each class."""
    from src.evaluation import promotion

    is_champion = champion.version == challenger.version
    evidence = promotion.Evidence(
        to_baseline=challenger.to_baseline,
        to_champion=None if comparison is None else comparison.difference,
        margin=params.register_.margin,
        n_groups=n_groups if comparison is None else comparison.n_groups,
        min_groups=params.register_.min_groups,
        reload_error=challenger.reload_error,
        golden_error=challenger.golden_error,
        rejected=challenger.rejected,
        no_champion="it is the champion" if is_champion else champion.absent,
        not_judged=_not_judged(comparison),
    )
    return promotion.decide(evidence)


def _not_judged(comparison: Comparison | None) -> dict[str, str]:
    if comparison is None or comparison.impossible is None:
        return {}
    reason = f"can't be compared with the champion, which stays: {comparison.impossible}"
    return {"not_worse_than_champion": reason}


def registration_of(
    challenger: Challenger,
    champion: Champion,
    comparison: Comparison | None,
    decision: "Decision",
    *,
    name: str,
    is_chosen: bool = False,
) -> dict[str, Any]:
    """What ``registration.json`` says; see the module's docstring for ``predict_with``.

    ``is_chosen``: a person made the present champion what it is.
    """
    standing = None if champion.files is None else champion.version
    after = challenger.version if decision.promote else standing
    is_outscored = (
        comparison is not None
        and comparison.difference is not None
        and comparison.difference.above_zero
    )
    is_passed_over = (
        not decision.promote and is_outscored and not is_chosen and challenger.rejected is None
    )
    predict_with = (
        {"version": challenger.version, "role": "unpromoted"}
        if after is None or is_passed_over
        else {"version": after, "role": "champion"}
    )
    return {
        "name": name,
        "challenger_version": challenger.version,
        "champion_version": after,
        "promoted": decision.promote,
        "reasons": decision.reasons,
        "rules": decision.as_table(),
        "challenger": asdict(challenger),
        "champion": None if comparison is None else asdict(comparison),
        "predict_with": predict_with,
    }


def is_chosen_by_a_person(name: str) -> bool:
    """Whether ``promote`` made the present champion, and not this stage."""
    from src.tracking.aliases import read_log
    from src.tracking.registry import CHAMPION

    moves = [entry for entry in read_log(name).entries if entry.alias == CHAMPION]
    return bool(moves) and moves[-1].action in ("promote", "rollback")


def record(
    registration: dict[str, Any],
    challenger: Challenger,
    champion: Champion,
    comparison: Comparison | None,
    decision: "Decision",
    changes: "AliasChanges",
) -> None:
    """Keep the evidence, point ``champion`` at a promoted challenger, tag the version."""
    from src.tracking.aliases import store_evidence
    from src.tracking.registry import CHAMPION, set_version_tags

    name, version = registration["name"], challenger.version
    document = evidence_document(
        name, version, champion, decision, comparison, challenger=asdict(challenger)
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
