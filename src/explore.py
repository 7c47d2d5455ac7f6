"""Stage ``explore``: pictures and statistics of the packed patches, before any training.

Reads ``data/ingest`` and ``data/split``; writes ``reports/explore`` and one MLflow run. What it
finds is information: channels unlike the reference, duplicates and blank patches never stop it.
"""

from __future__ import annotations

from src import paths
from src.params import load_params
from src.system.cli import run
from src.system.durable import read_json, replacing_folder, write_json
from src.system.log import configure, get_logger

REPORT = "explore.json"


def main() -> None:
    """Draw the packed patches and their statistics into reports/explore (params: explore).

    The pictures also go to MLflow, as one run beside the training runs.
    """
    from src.exploration.findings import open_packed, report_findings, survey_packed
    from src.exploration.pictures import draw_pictures
    from src.tracking.exploration_run import exploration_run

    params = load_params()
    configure(params.runtime.verbosity)
    log = get_logger("explore")

    packed = open_packed(paths.INGEST, paths.SPLIT_DIR)
    findings = survey_packed(packed, log)
    report = report_findings(packed, findings) | {"seed": params.explore.seed, "pictures": []}
    with replacing_folder(paths.EXPLORE) as folder:
        for name, figure in draw_pictures(packed, findings, params.explore):
            # without matplotlib's version in it, the file is a function of the data alone
            figure.savefig(folder / name, metadata={"Software": None})
            report["pictures"].append(name)
        report["pictures"].sort()
        write_json(folder / REPORT, report)

    flags, channels = report["flags"]["train"], report["channels"]
    log.info(
        f"{report['n_train']:,} labelled patches, {100 * report['tumour_fraction']:.1f} % tumour; "
        f"{report['n_test']:,} test patches; {report['n_slides']:,} slides"
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
    log.info(f"{len(report['pictures'])} pictures in {paths.EXPLORE}")

    # last, so that the pictures are there even where MLflow isn't
    split = read_json(paths.SPLIT_REPORT)
    tags = {
        "content_digest": str(read_json(paths.INGEST_REPORT)["digests"]["train"]),
        "groups_are": str(split["groups_are"]),
        "slide_disjoint": str(split["slide_disjoint"]).lower(),
    }
    with exploration_run(tags) as run_:
        run_.log_result(report, paths.EXPLORE)


if __name__ == "__main__":
    run(main)
