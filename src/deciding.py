"""What ``register`` and ``promote`` share: a version beside the champion on the same patches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from logging import Logger
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from src import paths
from src.evaluation.intervals import Difference, paired_difference
from src.evaluation.looks import Look, holdout_sha256
from src.evaluation.metrics import UndefinedMetric, auroc
from src.evaluation.promotion import GOLDEN_TOLERANCE, Decision, Evidence
from src.params import Params
from src.scoring import finite
from src.system.durable import read_json, verify_folder
from src.system.errors import ProjectError

if TYPE_CHECKING:
    from src.data.dataset import LabelledPatches
    from src.tracking.golden import Golden
    from src.tracking.registry import VersionFiles

_N_RELOAD_PATCHES = 16
_PROBABILITY_LAYER = "probability"


class IncomparableGroups(ProjectError):
    """Nobody can say which holdout groups a version was trained on."""


@dataclass(frozen=True)
class Champion:
    """The champion a decision is taken against.

    ``version`` is where the alias points, None where nowhere. ``files`` is None where the champion
    doesn't stand, and ``absent`` says why then.
    """

    version: int | None = None
    files: VersionFiles | None = None
    absent: str = "no champion yet"


@dataclass(frozen=True)
class Comparison:
    """Challenger and champion on the holdout groups that the champion never saw.

    ``n_groups`` counts those patches' groups that hold a class. The AUROCs and their difference,
    challenger minus champion, are None where they can't be had; ``impossible`` says why then.
    """

    version: int
    n_patches: int
    n_excluded: int
    n_groups: Mapping[str, int] = field(default_factory=dict)
    auroc: float | None = None
    challenger_auroc: float | None = None
    difference: Difference | None = None
    impossible: str | None = None


def read_holdout(predictions: Path) -> pd.DataFrame:
    """Holdout rows of the verified ``predictions.parquet``.

    Columns: id, sha256, slide, group, label, probability, baseline_probability.
    """
    verify_folder(predictions.parent)
    table = pd.read_parquet(predictions)
    holdout = table[table["split"] == "holdout"].reset_index(drop=True)
    if holdout.empty:
        raise ProjectError(f"no holdout patches in {predictions}; run: dvc repro evaluate")
    return holdout


def standing_champion(name: str, log: Logger) -> Champion:
    """The present champion, verified, loaded and its golden batch reproduced; or why it isn't."""
    from src.tracking.logged_models import VerificationError
    from src.tracking.registry import champion_version, load_version
    from src.tracking.store import TrackingError

    version = champion_version(name)
    if version is None:
        return Champion()
    try:
        files = load_version(name, version)
        check_golden(files)
    except (VerificationError, TrackingError) as error:
        absent = f"champion version {version} doesn't stand: {error}"
        log.warning(absent)
        return Champion(version, absent=absent)
    return Champion(version, files)


def check_golden(version: VersionFiles) -> None:
    """Refuse a version that doesn't give its golden logits any more.

    Raises
    ------
    VerificationError
        By how much they differ.
    """
    from src.tracking.logged_models import VerificationError

    error = golden_error(version.model, version.golden)
    if error is not None and not error <= GOLDEN_TOLERANCE:  # NaN is refused as well
        raise VerificationError(
            f"model verification failed: golden batch of version {version.version} of "
            f"{version.name} not reproduced, logits differ by up to {error:.2g}, allowed "
            f"{GOLDEN_TOLERANCE:g}"
        )


def golden_error(model: Any, golden: Golden | None) -> float | None:
    """Largest difference in logit between the model here and the batch; NaN where one is NaN.

    None without a batch.
    """
    if golden is None:
        return None
    return float(np.abs(logits_of(model, golden.patches) - golden.logits).max())


def logits_of(model: Any, patches: NDArray[np.uint8]) -> NDArray[np.float64]:
    """What enters the layer ``probability`` of the final model, (n,), in the graph that scores.

    Logits, because a probability near 0 or 1 hides a difference in the float32 it is stored in.

    Raises
    ------
    VerificationError
        The model has no such layer: it isn't one of this project's.
    """
    import keras

    from src.model.inference import forward_pass
    from src.tracking.logged_models import VerificationError

    try:
        logit = model.get_layer(_PROBABILITY_LAYER).input
    except ValueError as error:
        raise VerificationError(
            f"model verification failed: no layer named {_PROBABILITY_LAYER!r}; register "
            "models/final of this project's evaluate"
        ) from error
    return forward_pass(keras.Model(model.input, logit))(patches)[:, 0].astype(np.float64)


def gather(
    files: VersionFiles,
    champion: Champion,
    holdout: pd.DataFrame,
    params: Params,
    *,
    is_evaluated: bool,
    log: Logger,
) -> tuple[Evidence, Comparison | None]:
    """What the rules judge a version by: itself, the baseline and the champion on holdout.

    ``is_evaluated`` says that the ``probability`` in ``holdout`` is this version's own; otherwise
    the version is scored here. Groups that it saw in training are left out. Being judged is a look
    at the holdout, and decided at the confidence that so many looks leave.
    """
    from src.tracking.looks import take_look

    batch_size = params.runtime.inference_batch_size
    digest = holdout_sha256(holdout)
    look = Look(take_look(files.run_id, digest, scores_of(files)), digest)
    confidence = look.confidence(params.evaluate.confidence)
    comparison, to_baseline = None, None
    n_groups: Mapping[str, int] = {}
    not_judged: dict[str, str] = {}
    try:
        rows = unseen(holdout, files)
    except IncomparableGroups as error:
        not_judged = dict.fromkeys(("beats_baseline", "not_worse_than_champion"), str(error))
    else:
        log.info(f"{len(rows):,} holdout patches of groups that version {files.version} never saw")
        if not is_evaluated:
            rows["probability"] = score(files, rows["id"], batch_size, log)
        comparison = _with_champion(files, champion, rows, confidence, batch_size, log)
        n_groups = groups_by_class(rows) if comparison is None else comparison.n_groups
        try:
            to_baseline = difference(rows, rows["baseline_probability"], confidence)
        except UndefinedMetric as error:
            not_judged["beats_baseline"] = str(error)
        if comparison is not None and comparison.impossible is not None:
            reason = f"can't be compared with the champion, which stays: {comparison.impossible}"
            not_judged["not_worse_than_champion"] = reason
    evidence = Evidence(
        to_baseline=to_baseline,
        to_champion=None if comparison is None else comparison.difference,
        margin=params.register_.margin,
        n_groups=n_groups,
        min_groups=params.register_.min_groups,
        look=look,
        reload_error=reload_error(files, holdout, batch_size, log) if is_evaluated else None,
        golden_error=golden_error(files.model, files.golden),
        rejected=files.tags.get("rejected"),
        no_champion=(
            "it is the champion" if champion.version == files.version else champion.absent
        ),
        not_judged=not_judged,
    )
    return evidence, comparison


def scores_of(version: VersionFiles) -> str:
    """What tells the scores of one version from another's: its weights, and whether with TTA."""
    weights = str(version.evidence["final_weights_sha256"])
    return model_key(weights, tta=bool(version.operating_point["tta"]))


def model_key(weights_sha256: str, *, tta: bool) -> str:
    """The same for weights with the same ranking of every patch; calibration doesn't change it."""
    return f"{weights_sha256}{'+tta' if tta else ''}"


def _with_champion(
    files: VersionFiles,
    champion: Champion,
    rows: pd.DataFrame,
    confidence: float,
    batch_size: int,
    log: Logger,
) -> Comparison | None:
    """The comparison on ``rows``, which have the version's ``probability``.

    None without a champion that stands and is another version.
    """
    if champion.files is None or champion.version == files.version:
        return None
    if champion.files.model_sha256 == files.model_sha256:
        scores = rows["probability"].to_numpy()
    else:
        scores = score(champion.files, rows["id"], batch_size, log)
    return compare(champion.files, rows, scores, confidence)


def compare(
    champion: VersionFiles,
    holdout: pd.DataFrame,
    champion_probabilities: NDArray[np.float64],
    confidence: float,
) -> Comparison:
    """Compare on the groups that the champion never saw; patches of the others are counted.

    ``holdout`` has the challenger's ``probability``; ``champion_probabilities`` (n,) belong to its
    n rows.
    """
    try:
        rows = unseen(holdout.assign(champion=champion_probabilities), champion)
    except IncomparableGroups as error:
        return Comparison(champion.version, 0, len(holdout), impossible=str(error))
    found: dict[str, Any] = {
        "version": champion.version,
        "n_patches": len(rows),
        "n_excluded": len(holdout) - len(rows),
        "n_groups": groups_by_class(rows),
    }
    try:
        return Comparison(
            **found,
            difference=difference(rows, rows["champion"], confidence),
            auroc=auroc(rows["label"], rows["champion"]),
            challenger_auroc=auroc(rows["label"], rows["probability"]),
        )
    except UndefinedMetric as error:
        reason = "the champion saw every holdout group in training" if rows.empty else str(error)
        return Comparison(**found, impossible=reason)


def unseen(holdout: pd.DataFrame, version: VersionFiles) -> pd.DataFrame:
    """The holdout rows of groups and slides from which the version saw no patch at all.

    A patch is known by its id or by its pixels: the same one has other ids in Kaggle's archive and
    PatchCamelyon. What it saw (train, and val, which chose it) of the archive that is here is known
    patch by patch, so groups can be compared; of another archive only slides can, by name.

    Raises
    ------
    IncomparableGroups
        It was trained on another archive, and slides aren't named on both sides.
    """
    trained_on = version.evidence["data"]["train"]
    is_same_archive = trained_on == read_json(paths.INGEST_REPORT)["digests"]["train"]
    if not is_same_archive and (not version.seen_slides or holdout["slide"].isna().any()):
        raise IncomparableGroups(
            f"can't tell what version {version.version} saw: it was trained on another archive, "
            "and without slide names on both sides nobody knows which slides they share"
        )
    known = (
        holdout["id"].isin(version.seen_ids)
        | holdout["sha256"].isin(version.seen_sha256)
        | holdout["slide"].isin(version.seen_slides)
    )
    is_seen = known.groupby(holdout["group"]).transform("any")
    return holdout[~is_seen].reset_index(drop=True)


def difference(rows: pd.DataFrame, other_scores: Any, confidence: float) -> Difference:
    """AUROC of ``rows``' probability minus that of ``other_scores`` (n,), paired, by group.

    Raises
    ------
    UndefinedMetric
        There are too few groups, or no rows at all.
    """
    if rows.empty:
        raise UndefinedMetric("it saw every holdout group in training")
    return paired_difference(
        rows["label"], rows["probability"], other_scores, rows["group"], confidence=confidence
    )


def groups_by_class(rows: pd.DataFrame) -> dict[str, int]:
    """How many groups hold normal patches, and how many tumour."""
    return {
        name: int(rows.loc[rows["label"] == label, "group"].nunique())
        for label, name in enumerate(("normal", "tumour"))
    }


def reload_error(
    version: VersionFiles, holdout: pd.DataFrame, batch_size: int, log: Logger
) -> float:
    """Largest difference in probability, on the first holdout patches, from ``holdout``'s."""
    first = holdout.head(_N_RELOAD_PATCHES)
    reloaded = score(version, first["id"], batch_size, log)
    return float(np.abs(reloaded - first["probability"].to_numpy()).max())


def score(
    version: VersionFiles, ids: pd.Series[str], batch_size: int, log: Logger
) -> NDArray[np.float64]:
    """Probabilities (n,) of holdout patches, in the order of ``ids``.

    Raises
    ------
    ScoreError
        One isn't finite.
    """
    from src.data.dataset import load_split
    from src.model.inference import predict_outputs

    patches = load_split("holdout")
    rows = rows_of(ids, patches)
    probabilities = predict_outputs(
        version.model, patches.pixels, rows, batch_size=batch_size, log=log
    )
    return finite(probabilities, f"version {version.version} of {version.name}")


def rows_of(ids: pd.Series[str], patches: LabelledPatches) -> NDArray[np.int64]:
    """Where each id lies in the packed pixels."""
    rows = pd.Series(patches.rows, index=patches.ids).reindex(ids)
    if rows.isna().any():
        raise ProjectError(
            f"{int(rows.isna().sum()):,} holdout ids of predictions.parquet are not in the split, "
            f"first: {rows.index[rows.isna()][0]}; run: dvc repro evaluate"
        )
    return rows.to_numpy(dtype=np.int64)


def final_weights_sha256() -> str:
    """Of the weights that ``predictions.parquet`` comes from."""
    return str(read_json(paths.FINETUNED_MODEL / "fit.json")["final_weights_sha256"])


def evidence_document(
    name: str,
    version: int,
    champion: Champion,
    decision: Decision,
    comparison: Comparison | None,
    **more: Any,
) -> dict[str, Any]:
    """All that a decision about a version was based on, as plain values."""
    return {
        "name": name,
        "version": version,
        "decided_against": champion.version,
        "promote": decision.promote,
        "rules": decision.as_table(),
        "comparison": None if comparison is None else asdict(comparison),
        **more,
    }


def decision_tags(decision: Decision, *, verdict: str, evidence_sha256: str) -> dict[str, str]:
    """A decision as tags of its version: in words, rule by rule, and where the evidence lies."""
    import json

    return {
        "decision": f"{verdict}: {'; '.join(decision.reasons)}",
        "rules": json.dumps({name: check.held for name, check in decision.checks.items()}),
        "evidence_sha256": evidence_sha256,
    }
