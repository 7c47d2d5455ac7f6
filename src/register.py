"""Register ``models/final`` and decide whether it becomes champion.

Which version makes the submission (``predict_with`` in ``registration.json``):

- the champion's, when the challenger was just promoted or doesn't score above the champion on this
  archive's holdout, or when the two can't be compared;
- the challenger's, marked ``unpromoted``, when no champion stands: there never was one, its files
  don't verify, or it scores below a challenger that itself failed the gate (a champion of another
  archive, say).
"""

from dataclasses import asdict, dataclass
from logging import Logger
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from src import paths
from src.params import EvaluateParams, Params, load_params
from src.system.cli import run
from src.system.durable import read_json, verify_folder, write_json
from src.system.errors import ProjectError
from src.system.log import configure, get_logger

if TYPE_CHECKING:
    import pandas as pd

    from src.data.labelled import LabelledPatches
    from src.evaluation.intervals import Difference
    from src.tracking.registry import VersionFiles

_N_RELOAD_PATCHES = 16
_RELOAD_TOLERANCE = 1e-4  # in probability; float32 on other batch sizes stays well below


@dataclass(frozen=True)
class Challenger:
    """The version just registered, and how it does on holdout."""

    version: int
    run_id: str
    auroc: float
    baseline_auroc: float
    to_baseline: "Difference"


@dataclass(frozen=True)
class Comparison:
    """Challenger and champion on the holdout patches that the champion was not trained on.

    The AUROCs and their difference, challenger minus champion, are None where they can't be had;
    ``impossible`` says why then.
    """

    version: int
    n_patches: int
    n_excluded: int
    auroc: float | None = None
    challenger_auroc: float | None = None
    difference: "Difference | None" = None
    impossible: str | None = None


def main() -> None:
    """Register models/final in MLflow, decide whether it becomes champion, and say why."""
    params = load_params()
    configure(params.runtime.verbosity)
    log = get_logger("register")
    start(params)
    holdout = read_holdout(paths.PREDICTIONS)
    challenger = register_challenger(params, holdout, log)
    comparison, not_standing = compare_with_champion(params, holdout, log)
    registration = registration_of(
        challenger,
        comparison,
        name=params.register_.name,
        margin=params.register_.margin,
        not_standing=not_standing,
    )
    move_aliases(registration)
    write_json(paths.REGISTRATION, registration)
    report(registration, log)


def start(params: Params) -> None:
    """Start TensorFlow as ``evaluate`` does, so that probabilities agree."""
    from src.system.determinism import start_tensorflow

    runtime = params.runtime
    start_tensorflow(
        seed=params.evaluate.seed, threads=runtime.threads, quiet=runtime.quiet_tensorflow
    )


def read_holdout(predictions: Path) -> "pd.DataFrame":
    """Holdout rows of the verified ``predictions.parquet``: id, group, label, probability."""
    import pandas as pd

    verify_folder(predictions.parent)
    table = pd.read_parquet(predictions)
    holdout = table[table["split"] == "holdout"].reset_index(drop=True)
    if holdout.empty:
        raise ProjectError(f"no holdout patches in {predictions}; run: dvc repro evaluate")
    return holdout


def register_challenger(params: Params, holdout: "pd.DataFrame", log: Logger) -> Challenger:
    """Register ``models/final`` with its evidence, check that it reloads; alias ``challenger``."""
    from src.tracking.registry import CHALLENGER, load_version, register_version, set_alias

    name, metrics = params.register_.name, read_json(paths.METRICS)
    run_id = run_with_metrics(paths.FINETUNED_MODEL, metrics)
    evidence = evidence_of(metrics, run_id)
    version = register_version(paths.FINAL_MODEL, name=name, run_id=run_id, evidence=evidence)
    check_reload(load_version(name, version), holdout, params.runtime.inference_batch_size, log)
    set_alias(name, CHALLENGER, version)
    return Challenger(
        version,
        run_id,
        auroc=evidence["auroc"],
        baseline_auroc=evidence["baseline_auroc"],
        to_baseline=_to_baseline(metrics),
    )


def evidence_of(metrics: dict[str, Any], run_id: str) -> dict[str, Any]:
    """All that is known of the model when it is registered; stays with the version."""
    return {
        "auroc": metrics["holdout"]["auroc"],
        "baseline_auroc": metrics["baseline"]["auroc"],
        "metrics": metrics,
        "run_id": run_id,
        "final_weights_sha256": _final_weights_sha256(),
        "final_files_sha256": verify_folder(paths.FINAL_MODEL),
        "data": read_json(paths.INGEST_REPORT)["digests"],
    }


def _to_baseline(metrics: dict[str, Any]) -> "Difference":
    from src.evaluation.intervals import Difference

    difference = metrics["difference_to_baseline"]
    return Difference(difference["auroc"], difference["auroc_low"], difference["auroc_high"])


def compare_with_champion(
    params: Params, holdout: "pd.DataFrame", log: Logger
) -> tuple[Comparison | None, str | None]:
    """The comparison with the present champion; else None and, if it doesn't stand, the reason."""
    from src.tracking.logged_models import VerificationError
    from src.tracking.registry import champion_version, load_version
    from src.tracking.store import TrackingError

    name = params.register_.name
    version = champion_version(name)
    if version is None:
        return None, None
    try:
        champion = load_version(name, version)
    except (VerificationError, TrackingError) as error:
        log.warning(f"champion version {version} doesn't stand: {error}")
        return None, f"champion version {version} doesn't stand: {error}"
    if _has_same_weights(champion):
        probabilities = holdout["probability"].to_numpy()
    else:
        batch_size = params.runtime.inference_batch_size
        probabilities = _score(champion, holdout["id"], batch_size, log)
    return compare(champion, holdout, probabilities, params.evaluate), None


def compare(
    champion: "VersionFiles",
    holdout: "pd.DataFrame",
    champion_probabilities: NDArray[np.float64],
    params: EvaluateParams,
) -> Comparison:
    """Compare on the patches the champion was not trained on; the others are counted.

    ``champion_probabilities`` (n,) belong to the n rows of ``holdout``.
    """
    from src.evaluation.metrics import UndefinedMetric, auroc

    unseen = ~holdout["id"].isin(champion.training_ids).to_numpy()
    n_unseen, n_excluded = int(unseen.sum()), int((~unseen).sum())
    counted = Comparison(champion.version, n_unseen, n_excluded)
    if n_unseen == 0:
        return _impossible(counted, "the champion was trained on every holdout patch")
    rows, scores = holdout[unseen], champion_probabilities[unseen]
    try:
        difference = _difference(rows, rows["probability"], scores, params)
        return Comparison(
            champion.version,
            n_unseen,
            n_excluded,
            auroc=auroc(rows["label"], scores),
            challenger_auroc=auroc(rows["label"], rows["probability"]),
            difference=difference,
        )
    except UndefinedMetric as error:
        return _impossible(counted, str(error))


def _impossible(counted: Comparison, why: str) -> Comparison:
    return Comparison(counted.version, counted.n_patches, counted.n_excluded, impossible=why)


def registration_of(
    challenger: Challenger,
    comparison: Comparison | None,
    *,
    name: str,
    margin: float,
    not_standing: str | None = None,
) -> dict[str, Any]:
    """What ``registration.json`` says; see the module's docstring for ``predict_with``.

    ``comparison`` is None where no champion stands; ``not_standing`` then says why one that is
    registered doesn't.
    """
    promoted, reasons = _decision(challenger, comparison, margin)
    if not_standing is not None:
        reasons = [not_standing, *reasons]
    champion = _champion_after(challenger, comparison, promoted)
    predict_with = (
        {"version": challenger.version, "role": "unpromoted"}
        if champion is None or (not promoted and _is_outscored(comparison))
        else {"version": champion, "role": "champion"}
    )
    return {
        "name": name,
        "challenger_version": challenger.version,
        "champion_version": champion,
        "promoted": promoted,
        "reasons": reasons,
        "challenger": asdict(challenger),
        "champion": None if comparison is None else asdict(comparison),
        "predict_with": predict_with,
    }


def _decision(
    challenger: Challenger, comparison: Comparison | None, margin: float
) -> tuple[bool, list[str]]:
    from src.evaluation.promotion import decide

    if comparison is not None and comparison.difference is None:
        return False, [f"can't be compared with the champion, which stays: {comparison.impossible}"]
    to_champion = None if comparison is None else comparison.difference
    decision = decide(challenger.to_baseline, to_champion, margin=margin)
    return decision.promote, decision.reasons


def _champion_after(
    challenger: Challenger, comparison: Comparison | None, promoted: bool
) -> int | None:
    if promoted:
        return challenger.version
    return None if comparison is None else comparison.version


def _is_outscored(comparison: Comparison | None) -> bool:
    """Whether the challenger scores above the champion on the same patches."""
    return (
        comparison is not None
        and comparison.difference is not None
        and comparison.difference.value > 0
    )


def move_aliases(registration: dict[str, Any]) -> None:
    """Point ``champion`` at a promoted challenger; write the decision on the version."""
    from src.tracking.registry import CHAMPION, set_alias, set_version_tags

    name, version = registration["name"], registration["challenger_version"]
    if registration["promoted"]:
        set_alias(name, CHAMPION, version)
    decision = "promoted" if registration["promoted"] else "not promoted"
    set_version_tags(
        name, version, {"decision": f"{decision}: {'; '.join(registration['reasons'])}"}
    )


def report(registration: dict[str, Any], log: Logger) -> None:
    """Say what was decided, one fact a line."""
    challenger, predict_with = registration["challenger"], registration["predict_with"]
    log.info(
        f"{registration['name']} version {registration['challenger_version']}: holdout AUROC "
        f"{challenger['auroc']:.4f}, colour baseline {challenger['baseline_auroc']:.4f}"
    )
    for reason in registration["reasons"]:
        log.info(reason)
    verdict = "promoted to champion" if registration["promoted"] else "stays challenger"
    log.info(f"version {registration['challenger_version']} {verdict}")
    log.info(f"predict uses version {predict_with['version']} ({predict_with['role']})")


def check_reload(
    version: "VersionFiles", holdout: "pd.DataFrame", batch_size: int, log: Logger
) -> None:
    """Refuse a version that, loaded from the registry, doesn't give ``evaluate``'s probabilities.

    Raises
    ------
    VerificationError
        A probability of the first holdout patches differs by more than 1e-4.
    """
    from src.tracking.logged_models import VerificationError

    first = holdout.head(_N_RELOAD_PATCHES)
    reloaded = _score(version, first["id"], batch_size, log)
    worst = float(np.abs(reloaded - first["probability"].to_numpy()).max())
    if not worst <= _RELOAD_TOLERANCE:  # also True for NaN
        raise VerificationError(
            f"model verification failed: version {version.version}, loaded from the registry, "
            f"differs by up to {worst:.2g} in probability from predictions.parquet, allowed "
            f"{_RELOAD_TOLERANCE:g}; run: dvc repro --force evaluate"
        )


def _score(
    version: "VersionFiles", ids: "pd.Series[str]", batch_size: int, log: Logger
) -> NDArray[np.float64]:
    """Probabilities (n,) of holdout patches, in the order of ``ids``."""
    from src.data.labelled import load_split
    from src.model.inference import predict_probabilities

    patches = load_split("holdout")
    rows = _rows_of(ids, patches)
    return predict_probabilities(
        version.model, patches.pixels, rows, batch_size=batch_size, log=log
    )


def _rows_of(ids: "pd.Series[str]", patches: "LabelledPatches") -> NDArray[np.int64]:
    import pandas as pd

    rows = pd.Series(patches.rows, index=patches.ids).reindex(ids)
    if rows.isna().any():
        raise ProjectError(
            f"{int(rows.isna().sum()):,} holdout ids of predictions.parquet are not in the split, "
            f"first: {rows.index[rows.isna()][0]}; run: dvc repro evaluate"
        )
    return rows.to_numpy(dtype=np.int64)


def run_with_metrics(folder: Path, metrics: dict[str, Any]) -> str:
    """The run that made the model, restored if need be, with the metrics of its evaluation."""
    from src.tracking.runs import add_evaluation, ensure_run, lacks_metrics

    run_id = ensure_run(folder)
    if lacks_metrics(run_id, metrics):
        add_evaluation(run_id, metrics, {}, {})
    return run_id


def _has_same_weights(champion: "VersionFiles") -> bool:
    return champion.evidence.get("final_weights_sha256") == _final_weights_sha256()


def _final_weights_sha256() -> str:
    return str(read_json(paths.FINETUNED_MODEL / "fit.json")["final_weights_sha256"])


def _difference(
    rows: "pd.DataFrame", scores: Any, other_scores: Any, params: EvaluateParams
) -> "Difference":
    from src.evaluation.intervals import paired_difference

    return paired_difference(
        rows["label"],
        scores,
        other_scores,
        rows["group"],
        n_resamples=params.n_resamples,
        confidence=params.confidence,
        rng=np.random.default_rng(params.seed),
    )


if __name__ == "__main__":
    run(main)
