"""Predicting patches from anywhere with the champion: any input in, a table out."""

import csv
from collections.abc import Sequence
from logging import Logger
from pathlib import Path
from typing import TYPE_CHECKING

from src.params import Params
from src.system.durable import replacing
from src.system.errors import ProjectError
from src.system.progress import progress

if TYPE_CHECKING:
    from src.data.sources import PatchBatch, PatchInput
    from src.scoring import Scorer


class PredictionError(ProjectError):
    """The submission or table can't be made, or would not be what is expected of it."""


def predict_input(path: Path, output: Path, params: Params, *, skip_bad: bool, log: Logger) -> None:
    """Predict the patches at ``path`` with the champion; ``output`` appears whole or not at all.

    Raises
    ------
    InputError, ArchiveError
        ``path`` can't be used as a whole.
    PredictionError
        There is no champion, or patches are unreadable and ``skip_bad`` is False.
    """
    from src.data.sources import open_input

    if output.is_dir():
        raise PredictionError(f"--output is a folder: {output}; name the csv to write")
    source = open_input(path)
    name = params.register_.name
    scorer = load_champion(name, params, log)
    n_bad = write_predictions(
        source,
        scorer,
        output,
        batch_size=params.runtime.inference_batch_size,
        skip_bad=skip_bad,
        log=log,
    )
    log.info(f"{len(source.ids):,} rows in {output}, {n_bad:,} of them unreadable and empty")


def load_champion(name: str, params: Params, log: Logger) -> "Scorer":
    """The champion of the registry, verified, loaded and of this code's contract.

    Raises
    ------
    PredictionError
        There is none.
    VerificationError, ContractError
        Its files aren't those registered, or it expects other input.
    """
    from src.scoring import Scorer, start
    from src.tracking.registry import champion_version, load_version, verify_version

    number = champion_version(name)
    if number is None:
        raise PredictionError(
            f"no champion of {name} stands; run: dvc repro, or promote a version: "
            "python -m src.promote"
        )
    verify_version(name, number)  # before TensorFlow starts, as in the stage
    start(params.runtime)
    scorer = Scorer(load_version(name, number))
    log.info(f"{name} version {number} (champion): files verified and loaded")
    return scorer


def write_predictions(
    source: "PatchInput",
    scorer: "Scorer",
    output: Path,
    *,
    batch_size: int,
    skip_bad: bool,
    log: Logger,
) -> int:
    """Write a csv ``id``, ``probability``, ``decision``; return how many patches are unreadable.

    Each unreadable one is a line of log and, with ``skip_bad``, a row with empty values. Without,
    the first one ends the scoring, the others are still named, and nothing is written.

    Raises
    ------
    PredictionError
        See above.
    """
    from src.data.sources import batches

    n_bad = 0
    with (
        replacing(output) as temporary,
        temporary.open("w", encoding="utf-8", newline="") as file,
        progress("predicted", len(source.ids), "patches", log) as advance,
    ):
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["id", "probability", "decision"])
        for batch in batches(source, batch_size=batch_size):
            for i, reason in batch.bad.items():
                log.warning(f"unreadable patch {source.names[batch.first + i]}: {reason}")
            n_bad += len(batch.bad)
            if skip_bad or not n_bad:
                ids = source.ids[batch.first : batch.first + batch.n]
                table.writerows(_rows(ids, batch, scorer))
            advance(batch.n)
        if n_bad and not skip_bad:
            raise PredictionError(
                f"{n_bad:,} of {len(source.ids):,} patches are unreadable, named above; mend "
                "them, or leave them empty with --skip-bad; nothing was written"
            )
    return n_bad


def _rows(ids: Sequence[str], batch: "PatchBatch", scorer: "Scorer") -> list[tuple[str, str, str]]:
    probabilities = scorer.probabilities(batch.pixels)
    rows = [(patch_id, "", "") for patch_id in ids]
    decided = zip(batch.usable, probabilities, scorer.decisions(probabilities), strict=True)
    for i, probability, decision in decided:
        # 9 significant digits tell any two float32 apart
        rows[i] = (ids[i], f"{probability:.9g}", decision)
    return rows
