"""Which models were judged on an archive: tags of their runs, so a shared store counts for all."""

from __future__ import annotations

from mlflow.entities import ViewType

from src import paths
from src.system.durable import read_json
from src.tracking.registry import Version
from src.tracking.store import connect, reporting


def take_look(run_id: str, archive: str, model: str) -> int:
    """Number of ``model`` (any digest of it) among those judged on holdouts of an archive, from 1.

    A model seen before keeps its number.

    Two processes that look at the same moment may get the same number: the second verdict is then
    a little too lenient, and both tags show it.
    """
    store, tag = connect(), _tag(archive)
    numbers = _numbers(archive)
    number = numbers.get(model, 1 + max(numbers.values(), default=0))
    with reporting(f"did not take a tag of run {run_id}"):
        run = store.client.get_run(run_id)
        noted = run.data.tags.get(tag, "")
        is_deleted = run.info.lifecycle_stage == "deleted"  # and takes no tag
        if model not in _numbers_in(noted) and not (is_deleted and model in numbers):
            entry = f"{number} {model}"
            store.client.set_tag(run_id, tag, f"{noted}, {entry}" if noted else entry)
    return number


def look_of(version: Version, archive: str) -> int:
    """The same of a registered version."""
    weights = str(version.evidence["final_weights_sha256"])
    key = model_key(weights, tta=bool(version.operating_point["tta"]))
    return take_look(version.run_id, archive, key)


def n_looks(archive: str) -> int:
    """How many models were judged on holdouts of an archive so far."""
    return len(_numbers(archive))


def model_key(weights_sha256: str, *, tta: bool) -> str:
    """What a model is counted by: its weights, and whether it scores with test-time augmentation.

    Calibration changes no ranking, and so isn't part of it.
    """
    return f"{weights_sha256}{'+tta' if tta else ''}"


def archive_digest() -> str:
    """Of the labelled patches that are here: ids, pixels and labels."""
    return str(read_json(paths.INGEST_REPORT)["digests"]["train"])


def final_weights_sha256() -> str:
    """Of the weights of ``models/finetuned``, which ``predictions.parquet`` comes from."""
    return str(read_json(paths.FINETUNED_MODEL / "fit.json")["final_weights_sha256"])


def _numbers(archive: str) -> dict[str, int]:
    """Model → its number. Deleted runs count as well: what was seen stays seen."""
    store, tag = connect(), _tag(archive)
    found: dict[str, int] = {}
    page = None
    with reporting("can't be searched"):
        while page is None or page.token:
            page = store.client.search_runs(
                [store.experiment_id],
                filter_string=f"tags.`{tag}` LIKE '%'",
                run_view_type=ViewType.ALL,
                page_token=page.token if page else None,
            )
            for run in page:
                found |= _numbers_in(run.data.tags[tag])
    return found


def _numbers_in(noted: str) -> dict[str, int]:
    """``1 c0ffee, 2 c0ffee+tta`` → model → number; one run may have given several models."""
    entries = (entry.split(" ", 1) for entry in noted.split(", ") if entry)
    return {model: int(number) for number, model in entries}


def _tag(archive: str) -> str:
    return f"archive_look.{archive[:12]}"
