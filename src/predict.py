"""Predict with the registered version that was chosen: the stage, or any patches you have.

Without options, the stage: the unlabelled patches, with the version that ``register`` named. With
``--input`` and ``--output``: the patches there, with the champion.
"""

from dataclasses import dataclass
from logging import Logger
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from src import paths
from src.params import Params, load_params
from src.prediction import PredictionError, predict_input
from src.system.cli import run
from src.system.durable import read_json, replacing_folder, write_json
from src.system.log import configure, get_logger

if TYPE_CHECKING:
    import pandas as pd

    from src.tracking.registry import VersionFiles


_CHOOSE = "dvc repro --single-item --force register predict"


@dataclass(frozen=True)
class Submission:
    """The table to send in, and which of its ids had no readable image.

    ``table`` has columns ``id``, ``label`` (a probability), in the order of
    ``sample_submission.csv``. ``prevalence``, the share of tumour among labelled patches, stands
    for the quarantined.
    """

    table: "pd.DataFrame"
    quarantined: list[str]
    prevalence: float


def main(
    input_: Annotated[
        Path | None,
        typer.Option("--input", help="a folder, a zip, a csv list of files, or a .npy of patches"),
    ] = None,
    output: Annotated[Path | None, typer.Option(help="the csv to write")] = None,
    *,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="leave unreadable patches empty, don't refuse")
    ] = False,
) -> None:
    """Predict the test patches and write submission.csv; or those of --input, into --output."""
    params = load_params()
    configure(params.runtime.verbosity)
    log = get_logger("predict")
    if input_ is None and output is None and not skip_bad:
        predict_test(params, log)
        return
    if input_ is None or output is None:
        raise PredictionError("--input and --output go together; give both, or none for the stage")
    predict_input(input_, output, params, skip_bad=skip_bad, log=log)


def predict_test(params: Params, log: Logger) -> None:
    """The stage: predict the test patches, write submission.csv and lineage.json."""
    from src.scoring import start

    registration = read_json(paths.REGISTRATION)
    ingested = read_json(paths.INGEST_REPORT)
    if ingested["no_submission"]:
        write_no_submission(paths.SUBMISSION_DIR, data_digests=ingested["digests"], log=log)
        return
    # before TensorFlow, which takes ten seconds to start: a deleted registry is noticed at once
    check_chosen(registration)
    start(params.runtime)
    version = load_chosen(registration, unpromoted=params.predict.unpromoted, log=log)
    submission = predict(version, batch_size=params.runtime.inference_batch_size, log=log)
    write_submission(
        paths.SUBMISSION_DIR,
        submission,
        version,
        role=registration["predict_with"]["role"],
        data_digests=ingested["digests"],
    )
    log.info(
        f"{len(submission.table):,} rows in {paths.SUBMISSION.relative_to(paths.ROOT)}, "
        f"mean probability {submission.table['label'].mean():.3f}, "
        f"{len(submission.quarantined):,} quarantined"
    )


def check_chosen(registration: dict[str, Any]) -> None:
    """Refuse a version that isn't the one ``register`` chose, or is champion no longer.

    Raises
    ------
    PredictionError
        Another registry has another version of that number, or another version is champion now.
    VerificationError, TrackingError
        Its files changed, or it isn't there.
    """
    from src.tracking.registry import champion_version, verify_version, version_tags

    name, chosen = registration["name"], registration["predict_with"]
    number = int(chosen["version"])
    verify_version(name, number)
    if version_tags(name, number)["manifest_sha256"] != chosen["manifest_sha256"]:
        raise PredictionError(
            f"version {number} of {name} is not the one that register chose (another registry, or "
            f"one made anew?); run: {_CHOOSE}"
        )
    champion = champion_version(name)
    if chosen["role"] == "champion" and champion != number:
        now = "none" if champion is None else f"version {champion}"
        raise PredictionError(
            f"version {number} of {name} was champion when register chose it, {now} is now; run: "
            f"{_CHOOSE}"
        )


def load_chosen(registration: dict[str, Any], *, unpromoted: str, log: Logger) -> "VersionFiles":
    """Load the version that ``registration.json`` names, verified.

    Raises
    ------
    PredictionError
        It is unpromoted, and ``predict.unpromoted`` says ``refuse``.
    ContractError
        It expects other input than this code gives.
    """
    from src.model.final import check_contract
    from src.tracking.registry import load_version

    name, chosen = registration["name"], registration["predict_with"]
    if chosen["role"] == "unpromoted":
        why = why_unpromoted(registration)
        if unpromoted == "refuse":
            raise PredictionError(
                f"{why}, and predict.unpromoted is refuse: "
                f"{'; '.join(registration['reasons'])}; improve the model, or set "
                "predict.unpromoted: allow to predict with the challenger"
            )
        log.warning(f"{why}: predicting with version {chosen['version']}, unpromoted")
    version = load_version(name, int(chosen["version"]))
    check_contract(version.contract, version.model)
    log.info(f"{name} version {version.version} ({chosen['role']}): files verified and loaded")
    return version


def why_unpromoted(registration: dict[str, Any]) -> str:
    """Why the submission isn't the champion's."""
    champion = registration["champion_version"]
    if champion is None:
        return f"no champion of {registration['name']} stands"
    return f"champion version {champion} scores surely below the challenger, which failed the rules"


def predict(version: "VersionFiles", *, batch_size: int, log: Logger) -> Submission:
    """Probability of every test patch; quarantined ones get the training prevalence."""
    from src.data.patches import open_pixels, read_patches
    from src.model.inference import predict_outputs

    patches = read_patches(paths.INGEST)
    test = in_submission_order(patches)
    is_readable = (test["row"] >= 0).to_numpy()
    rows = test["row"].to_numpy(dtype=np.int64)[is_readable]
    probabilities = np.full(len(test), training_prevalence(patches))
    probabilities[is_readable] = predict_outputs(
        version.model,
        open_pixels("test", paths.INGEST),
        rows,
        batch_size=batch_size,
        log=log,
    )
    table = submission_table(test["id"].to_numpy(), probabilities)
    quarantined = test["id"][~is_readable].tolist()
    return Submission(table, quarantined, training_prevalence(patches))


def in_submission_order(patches: "pd.DataFrame") -> "pd.DataFrame":
    """The test rows of ``patches.parquet`` in the order of ``sample_submission.csv``.

    Raises
    ------
    PredictionError
        There are none, or their positions aren't 0 … n-1, each once.
    """
    test = patches[patches["subset"] == "test"].sort_values("submission_order")
    if test.empty:
        raise PredictionError("no test patches in patches.parquet; run: dvc repro ingest")
    order = test["submission_order"]
    if order.isna().any() or order.tolist() != list(range(len(test))):
        raise PredictionError(
            f"submission_order of the {len(test):,} test patches is not 0 … {len(test) - 1:,}, "
            "each once; run: dvc repro --force ingest"
        )
    return test.reset_index(drop=True)


def training_prevalence(patches: "pd.DataFrame") -> float:
    """Share of tumour among the labelled patches."""
    return float(patches.loc[patches["subset"] == "train", "label"].mean())


def submission_table(
    ids: NDArray[np.object_], probabilities: NDArray[np.float64]
) -> "pd.DataFrame":
    """The columns ``id``, ``label``, checked.

    Raises
    ------
    PredictionError
        An id comes twice, or a probability is not a finite number in [0, 1].
    """
    import pandas as pd

    table = pd.DataFrame({"id": ids, "label": probabilities})
    repeated = table["id"][table["id"].duplicated()]
    if len(repeated):
        raise PredictionError(
            f"{len(repeated):,} ids come twice, first: {repeated.iloc[0]}; run: dvc repro ingest"
        )
    wrong = table[~table["label"].between(0, 1)]  # NaN isn't between
    if len(wrong):
        raise PredictionError(
            f"{len(wrong):,} probabilities are not in [0, 1], first: {wrong['label'].iloc[0]} for "
            f"{wrong['id'].iloc[0]}; the model is broken: run: dvc repro --force finetune"
        )
    return table


def write_submission(
    folder: Path,
    submission: Submission,
    version: "VersionFiles",
    *,
    role: str,
    data_digests: dict[str, Any],
) -> None:
    """Write ``submission.csv`` and ``lineage.json``; both appear together or not at all."""
    from src.tracking.lineage import submission_lineage

    with replacing_folder(folder) as temporary:
        csv = temporary / paths.SUBMISSION.name
        # 9 significant digits tell any two float32 apart
        submission.table.to_csv(csv, index=False, float_format="%.9g", lineterminator="\n")
        lineage = submission_lineage(
            submission=csv,
            n_rows=len(submission.table),
            quarantined=submission.quarantined,
            quarantined_probability=submission.prevalence,
            version=version,
            role=role,
            data_digests=data_digests,
        )
        write_json(temporary / paths.LINEAGE.name, lineage)


def write_no_submission(folder: Path, *, data_digests: dict[str, Any], log: Logger) -> None:
    """Write a ``lineage.json`` that says why there is no ``submission.csv`` beside it."""
    reason = (
        "ingest.no_submission is true: the test images were left out, because their labels may be "
        "among the training data"
    )
    with replacing_folder(folder) as temporary:
        lineage = {"submission": None, "reason": reason, "data": data_digests}
        write_json(temporary / paths.LINEAGE.name, lineage)
    log.warning(f"no submission.csv: {reason}")


if __name__ == "__main__":
    run(main)
