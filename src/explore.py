"""Stage ``explore``: pictures and statistics of the packed patches, before any training.

Reads ``data/ingest`` and ``data/split``; writes ``reports/explore`` and one MLflow run. What it
finds is information: a fail beside the reference, a duplicate or a blank patch never stops it.
"""

from logging import Logger
from pathlib import Path
from typing import Any

from src import paths
from src.params import ExploreParams, load_params
from src.system.cli import run
from src.system.log import configure, get_logger

REPORT = "explore.json"


def main() -> None:
    """Draw the packed patches and their statistics into reports/explore (params: explore).

    The pictures also go to MLflow, as one run beside the training runs.
    """
    from src.tracking.runs import log_exploration

    params = load_params()
    configure(params.runtime.verbosity)
    report = explore(
        params.explore,
        ingest=paths.INGEST,
        split=paths.SPLIT_DIR,
        destination=paths.EXPLORE,
        log=get_logger("explore"),
    )
    # last, so that the pictures are there even where MLflow isn't
    log_exploration(_data_tags(), report, paths.EXPLORE)


def explore(
    params: ExploreParams, *, ingest: Path, split: Path, destination: Path, log: Logger
) -> dict[str, Any]:
    """Write the pictures and ``explore.json`` to ``destination``; return the latter.

    Raises
    ------
    ExploreError
        The pixels and the tables of ``ingest`` and ``split`` don't have the same patches.
    """
    from src.data.exploration_pictures import draw_pictures
    from src.data.exploration_report import report_findings
    from src.data.explored import open_packed, survey_packed
    from src.system.durable import replacing_folder, write_json

    packed = open_packed(ingest, split)
    findings = survey_packed(packed, log)
    pictures = draw_pictures(packed, findings, params)
    report = {
        **report_findings(packed, findings),
        "seed": params.seed,
        "pictures": sorted(pictures),
    }
    with replacing_folder(destination) as folder:
        for name, figure in pictures.items():
            # without matplotlib's version in it, the file is a function of the data alone
            figure.savefig(folder / name, metadata={"Software": None})
        write_json(folder / REPORT, report)
    _log_report(report, destination, log)
    return report


def _data_tags() -> dict[str, str]:
    from src.system.durable import read_json

    split = read_json(paths.SPLIT_REPORT)
    return {
        "content_digest": str(read_json(paths.INGEST_REPORT)["digests"]["train"]),
        "groups_are": str(split["groups_are"]),
        "slide_disjoint": str(split["slide_disjoint"]).lower(),
    }


def _log_report(report: dict[str, Any], destination: Path, log: Logger) -> None:
    flags = report["flags"]["train"]
    channels = report["channels"]
    log.info(
        f"{report['n_train']:,} labelled patches, {report['tumour_fraction']:.1%} tumour; ".replace(
            "%", " %"
        )
        + f"{report['n_test']:,} test patches; {report['n_slides']:,} slides"
    )
    log.info(
        f"flagged in train: {flags['blank_white']:,} white, {flags['blank_black']:,} black, "
        f"{flags['duplicate_of']:,} duplicates"
    )
    outcome = [
        f"{name} {mean:.3f} {'pass' if channels['train_like_reference'][name] else 'fail'}"
        for name, mean in zip(channels["order"], channels["train"]["mean"], strict=True)
    ]
    log.info(f"channels beside Kaggle's training set: {', '.join(outcome)} (information only)")
    log.info(f"{len(report['pictures'])} pictures in {destination}")


if __name__ == "__main__":
    run(main)
