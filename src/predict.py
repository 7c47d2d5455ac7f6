"""Predict with the registered version that was chosen: the stage, or any patches you have.

Without options, the stage: the unlabelled patches, with the version that ``register`` named. With
``--input`` and ``--output``: the patches there, with the champion.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import typer
from numpy.typing import NDArray

from src import paths
from src.data.patches import open_pixels, read_patches
from src.data.sources import open_input
from src.params import load_params
from src.system.cli import run
from src.system.determinism import start_scoring
from src.system.durable import read_json, replacing_folder, sha256_file, write_json
from src.system.errors import ProjectError
from src.system.log import configure, get_logger

_CHOOSE = "dvc repro --single-item --force register predict"
_NO_SUBMISSION = (
    "ingest.no_submission is true: the test images were left out, because their labels may be "
    "among the training data"
)


class PredictionError(ProjectError):
    """The submission or table can't be made, or would not be what is expected of it."""


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
    is_stage = input_ is None and output is None and not skip_bad
    if not is_stage and (input_ is None or output is None):
        raise PredictionError("--input and --output go together; give both, or none for the stage")
    from src.tracking.lineage import origin
    from src.tracking.registry import CHAMPION, aliases, champion_of, find_version

    if input_ is not None and output is not None:
        if output.is_dir():
            raise PredictionError(f"--output is a folder: {output}; name the csv to write")
        source = open_input(input_)
        version, role = champion_of(params.register_.name), "champion"
        if version is None:
            raise PredictionError(
                f"there is no champion of {params.register_.name}; run: dvc repro, or promote a "
                "version: python -m src.promote"
            )
    else:
        ingested = read_json(paths.INGEST_REPORT)
        if ingested["no_submission"]:
            write_no_submission(paths.SUBMISSION_DIR, data_digests=ingested["digests"])
            log.warning(f"no submission.csv: {_NO_SUBMISSION}")
            return
        registration = read_json(paths.REGISTRATION)
        name, role = registration["name"], registration["predict_with"]["role"]
        version = find_version(name, int(registration["predict_with"]["version"]))
        check_chosen(
            registration,
            manifest_sha256=version.manifest_sha256,
            champion=aliases(name).get(CHAMPION),
        )
        if role == "unpromoted":
            why = why_unpromoted(registration, params.predict.unpromoted)
            log.warning(f"{why}: predicting with version {version.number}, unpromoted")
    version.verify()  # before TensorFlow, which takes ten seconds to start
    start_scoring(params.runtime)
    from src.model.scorer import Scorer, write_predictions

    scorer, batch_size = Scorer(version), params.runtime.inference_batch_size
    log.info(f"{version.name} version {version.number} ({role}): files verified and loaded")
    if output is not None:
        write_predictions(source, scorer, output, batch_size=batch_size, skip_bad=skip_bad, log=log)
        return
    patches = read_patches(paths.INGEST)
    test, prevalence = in_submission_order(patches), training_prevalence(patches)
    rows = test["row"].to_numpy(dtype=np.int64)
    is_readable = rows >= 0
    probabilities = np.full(len(test), prevalence)  # what a quarantined patch gets
    probabilities[is_readable] = scorer.of_rows(
        open_pixels("test", paths.INGEST), rows[is_readable], batch_size=batch_size, log=log
    )
    table = submission_table(test["id"].to_numpy(), probabilities)
    quarantined = test["id"][~is_readable].tolist()
    write_submission(
        paths.SUBMISSION_DIR,
        table,
        {
            "submission": {
                "quarantined": quarantined,
                "quarantined_probability": prevalence,
            },
            "model": {
                "name": version.name,
                "version": version.number,
                "role": role,
                "run_id": version.run_id,
                "model_sha256": version.model_sha256,
                "manifest_sha256": version.manifest_sha256,
            },
            "operating_point": version.operating_point,
            "data": ingested["digests"],
            "code": {key: value for key, value in origin().items() if key.startswith("git_")},
        },
    )
    log.info(
        f"{len(table):,} rows in {paths.SUBMISSION.relative_to(paths.ROOT)}, "
        f"mean probability {table['label'].mean():.3f}, {len(quarantined):,} quarantined"
    )


def check_chosen(
    registration: Mapping[str, Any], *, manifest_sha256: str, champion: int | None
) -> None:
    """Refuse a version that isn't the one ``register`` chose, or is champion no longer.

    ``manifest_sha256`` is that of the version found, ``champion`` the number of the present one.

    Raises
    ------
    PredictionError
        Another registry has another version of that number, or another version is champion now.
    """
    chosen = registration["predict_with"]
    called = f"version {chosen['version']} of {registration['name']}"
    if manifest_sha256 != chosen["manifest_sha256"]:
        raise PredictionError(
            f"{called} is not the one that register chose (another registry, or one made anew?); "
            f"run: {_CHOOSE}"
        )
    if chosen["role"] == "champion" and champion != int(chosen["version"]):
        raise PredictionError(
            f"{called} was champion when register chose it, "
            f"{'none' if champion is None else f'version {champion}'} is now; run: {_CHOOSE}"
        )


def why_unpromoted(registration: Mapping[str, Any], policy: str) -> str:
    """Why the submission isn't the champion's; ``policy`` is ``predict.unpromoted``.

    Raises
    ------
    PredictionError
        The policy is ``refuse``.
    """
    champion = registration["champion_version"]
    why = (
        f"there is no champion of {registration['name']}"
        if champion is None
        else f"champion version {champion} scores significantly below the challenger, which failed "
        "the rules"
    )
    if policy == "refuse":
        raise PredictionError(
            f"{why}, and predict.unpromoted is refuse: {'; '.join(registration['reasons'])}; "
            "improve the model, or set predict.unpromoted: allow to predict with the challenger"
        )
    return why


def in_submission_order(patches: pd.DataFrame) -> pd.DataFrame:
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


def training_prevalence(patches: pd.DataFrame) -> float:
    """Share of tumour among the labelled patches."""
    return float(patches.loc[patches["subset"] == "train", "label"].mean())


def submission_table(ids: NDArray[np.object_], probabilities: NDArray[np.float64]) -> pd.DataFrame:
    """The columns ``id``, ``label``, checked.

    Raises
    ------
    PredictionError
        An id comes twice, or a probability is not a finite number in [0, 1].
    """
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


def write_submission(folder: Path, table: pd.DataFrame, lineage: dict[str, Any]) -> None:
    """Write ``submission.csv`` and ``lineage.json``; both appear together or not at all.

    To what ``lineage`` says of the submission come its file, SHA-256 and number of rows.
    """
    with replacing_folder(folder) as temporary:
        csv = temporary / paths.SUBMISSION.name
        # 9 significant digits tell any two float32 apart
        table.to_csv(csv, index=False, float_format="%.9g", lineterminator="\n")
        of_file = {"file": csv.name, "sha256": sha256_file(csv), "n_rows": len(table)}
        submission = {**lineage["submission"], **of_file}
        write_json(temporary / paths.LINEAGE.name, {**lineage, "submission": submission})


def write_no_submission(folder: Path, *, data_digests: Mapping[str, str]) -> None:
    """Write a ``lineage.json`` that says why there is no ``submission.csv`` next to it."""
    with replacing_folder(folder) as temporary:
        lineage = {"submission": None, "reason": _NO_SUBMISSION, "data": data_digests}
        write_json(temporary / paths.LINEAGE.name, lineage)


if __name__ == "__main__":
    run(main)
