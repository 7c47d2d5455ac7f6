"""What the rules judge a version by: itself, the colour baseline and the champion, on holdout.

Patches that a version saw in training count for nothing, and with them their whole groups.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from logging import Logger
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from src import paths
from src.evaluation.intervals import Difference, paired_difference
from src.evaluation.looks import Look
from src.evaluation.metrics import UndefinedMetric, auroc
from src.evaluation.promotion import GOLDEN_TOLERANCE, Decision, Evidence
from src.params import RegisterParams
from src.system.durable import read_json, verify_folder
from src.system.errors import ProjectError, VerificationError

_N_RELOAD_PATCHES = 16


class IncomparableGroups(ProjectError):
    """Nobody can say which holdout groups a version was trained on."""


class Candidate(Protocol):
    """What is needed of ``src.tracking.registry.Version``; each attribute is verified when read."""

    name: str
    number: int

    @property
    def run_id(self) -> str:
        """The MLflow run that fine-tuned it."""

    @property
    def manifest_sha256(self) -> str:
        """Tells it from a version of that number in another registry."""

    @property
    def evidence(self) -> Mapping[str, Any]:
        """What was known of it when it was registered."""

    @property
    def rejected(self) -> str | None:
        """Why a person rejected it; None where nobody did."""

    @property
    def model_sha256(self) -> str:
        """Of its ``.keras`` file."""

    @property
    def trained_on(self) -> str:
        """Digest of the labelled patches of its archive."""

    @property
    def seen_ids(self) -> frozenset[str]:
        """Ids of the patches it was trained on or chosen by (train and val)."""

    @property
    def seen_sha256(self) -> frozenset[str]:
        """SHA-256 of their pixels."""

    @property
    def seen_slides(self) -> frozenset[str]:
        """Names of their slides, where the archive names any."""


class Scores(Protocol):
    """``src.model.scorer.HoldoutScores``: what versions say of holdout patches."""

    def golden_error(self, version: Any) -> float | None:
        """Largest difference in logit from the version's golden batch; None without one."""

    def probabilities(self, version: Any, ids: pd.Series[str]) -> NDArray[np.float64]:
        """Probabilities (n,) of holdout patches, in the order of ``ids``."""


@dataclass(frozen=True)
class Champion:
    """The champion a decision is taken against.

    ``number`` is where the alias points, None where nowhere. ``version`` is None where the champion
    can't be verified, and ``absent`` says why.
    """

    number: int | None = None
    version: Candidate | None = None
    absent: str = "no champion yet"


@dataclass(frozen=True)
class Comparison:
    """Challenger and champion on the holdout groups that the champion never saw.

    ``n_groups`` counts those patches' groups that hold a class. The AUROCs and their difference,
    challenger minus champion, are None where they can't be had; ``impossible`` says why.
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


def verified_champion(version: Candidate | None, scores: Scores, log: Logger) -> Champion:
    """The present champion, if its files and its golden batch are sound; else why they aren't."""
    if version is None:
        return Champion()
    try:
        check_golden(version, scores)
    except ProjectError as error:
        absent = f"champion version {version.number} can't be verified: {error}"
        log.warning(absent)
        return Champion(version.number, absent=absent)
    return Champion(version.number, version)


def check_golden(version: Candidate, scores: Scores) -> None:
    """Refuse a version that doesn't give its golden logits any more.

    Raises
    ------
    VerificationError
        By how much they differ.
    """
    error = scores.golden_error(version)
    if error is not None and not error <= GOLDEN_TOLERANCE:  # NaN is refused as well
        raise VerificationError(
            f"model verification failed: golden batch of version {version.number} not reproduced, "
            f"logits differ by up to {error:.2g}, allowed {GOLDEN_TOLERANCE:g}"
        )


def gather(
    version: Candidate,
    champion: Champion,
    holdout: pd.DataFrame,
    scores: Scores,
    look: Look,
    gate: RegisterParams,
    *,
    confidence: float,
    is_evaluated: bool,
) -> tuple[Evidence, Comparison | None]:
    """The evidence on a version, and its comparison with the champion, if there is another one.

    ``is_evaluated`` says that the ``probability`` in ``holdout`` is this version's own; otherwise
    the version is scored here. Everything is decided at what ``look`` leaves of ``confidence``.
    """
    confidence = look.confidence(confidence)
    reload_error = None
    if is_evaluated:
        first = holdout.head(_N_RELOAD_PATCHES)
        reloaded = scores.probabilities(version, first["id"])
        reload_error = float(np.abs(reloaded - first["probability"].to_numpy()).max())
    comparison, to_baseline = None, None
    n_groups: Mapping[str, int] = {}
    not_judged: dict[str, str] = {}
    try:
        rows = unseen(holdout, version)
        if not is_evaluated:
            rows["probability"] = scores.probabilities(version, rows["id"])
        comparison = _with_champion(version, champion, rows, scores, confidence)
        n_groups = groups_by_class(rows) if comparison is None else comparison.n_groups
        to_baseline = difference(rows, rows["baseline_probability"], confidence)
    except IncomparableGroups as error:
        not_judged = dict.fromkeys(("beats_baseline", "not_worse_than_champion"), str(error))
    except UndefinedMetric as error:
        not_judged["beats_baseline"] = f"can't be compared with the colour baseline: {error}"
    if comparison is not None and comparison.impossible is not None:
        reason = f"can't be compared with the champion, which stays: {comparison.impossible}"
        not_judged["not_worse_than_champion"] = reason
    evidence = Evidence(
        to_baseline=to_baseline,
        to_champion=None if comparison is None else comparison.difference,
        margin=gate.margin,
        n_groups=n_groups,
        min_groups=gate.min_groups,
        look=look,
        reload_error=reload_error,
        golden_error=scores.golden_error(version),
        rejected=version.rejected,
        no_champion=(
            "it is the champion" if champion.number == version.number else champion.absent
        ),
        not_judged=not_judged,
    )
    return evidence, comparison


def _with_champion(
    version: Candidate,
    champion: Champion,
    rows: pd.DataFrame,
    scores: Scores,
    confidence: float,
) -> Comparison | None:
    """The comparison on ``rows``, which have the version's ``probability``.

    None without a verified champion that is another version.
    """
    other = champion.version
    if other is None or other.number == version.number:
        return None
    if other.model_sha256 == version.model_sha256:
        return compare(other, rows, rows["probability"].to_numpy(), confidence)
    return compare(other, rows, scores.probabilities(other, rows["id"]), confidence)


def compare(
    champion: Candidate,
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
        return Comparison(champion.number, 0, len(holdout), impossible=str(error))
    found: dict[str, Any] = {
        "version": champion.number,
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


def unseen(holdout: pd.DataFrame, version: Candidate) -> pd.DataFrame:
    """The holdout rows of groups and slides from which the version saw no patch at all.

    A patch is known by its id or by its pixels: the same one has other ids in Kaggle's archive and
    PatchCamelyon. What it saw (train, and val, which chose it) of the archive that is here is known
    patch by patch, so groups can be compared; of another archive only slides can, by name.

    Raises
    ------
    IncomparableGroups
        It was trained on another archive, and slides aren't named on both sides.
    """
    is_same_archive = version.trained_on == read_json(paths.INGEST_REPORT)["digests"]["train"]
    if not is_same_archive and (not version.seen_slides or holdout["slide"].isna().any()):
        raise IncomparableGroups(
            f"can't tell what version {version.number} saw: it was trained on another archive, "
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


def evidence_document(
    version: Candidate,
    champion: Champion,
    decision: Decision,
    comparison: Comparison | None,
    **more: Any,
) -> dict[str, Any]:
    """All that a decision about a version was based on, as plain values."""
    return {
        "name": version.name,
        "version": version.number,
        "decided_against": champion.number,
        "promote": decision.promote,
        "rules": decision.as_table(),
        "comparison": None if comparison is None else asdict(comparison),
        **more,
    }


def decision_tags(decision: Decision, verdict: str) -> dict[str, str]:
    """A decision as tags of its version: in words, and rule by rule."""
    return {
        "decision": f"{verdict}: {'; '.join(decision.reasons)}",
        "rules": json.dumps({name: check.held for name, check in decision.checks.items()}),
    }
