"""What Kaggle says of a submission, on the run and the version it comes from."""

from collections.abc import Mapping

from src.tracking.lifecycle import log_metrics, set_tags
from src.tracking.registry import set_version_tags, version_tags
from src.tracking.store import connect, reporting


def write_scores(
    name: str, version: int, run_id: str, *, submission_sha256: str, scores: Mapping[str, float]
) -> None:
    """Write ``kaggle.public_score`` and ``kaggle.private_score``, as far as they are known.

    Metrics of the run, so that runs can be sorted by them; tags of the version, which the listing
    shows.

    Raises
    ------
    TrackingError
        The store doesn't know run or version, or doesn't take them.
    """
    version_tags(name, version)  # nothing is written where the version is unknown
    named = {f"kaggle.{kind}_score": value for kind, value in scores.items()}
    sent = {"kaggle.submission_sha256": submission_sha256}
    store = connect()
    with reporting(f"did not take Kaggle's scores of run {run_id}"):
        log_metrics(store, run_id, named)
        set_tags(store, run_id, sent)
    shown = {key: f"{value:.5g}" for key, value in named.items()}
    set_version_tags(name, version, {**shown, **sent})
