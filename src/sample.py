"""Stage ``sample``: a generated archive in Kaggle's layout, for running everything offline."""

from __future__ import annotations

from src import paths
from src.params import load_params
from src.system.cli import run
from src.system.log import configure, get_logger
from src.system.progress import progress


def main() -> None:
    """Write data/source/sample.zip: generated H&E-like patches in the layout of Kaggle's archive.

    Parameters: section sample of params.yaml. Equal parameters give equal bytes.
    """
    from src.drawing.archive import write_archive
    from src.drawing.plan import describe, plan_subset

    params = load_params()
    configure(params.runtime.verbosity)
    log = get_logger("sample")
    spec = params.sample
    train = plan_subset(
        seed=spec.seed, subset="train", n_patches=spec.n_train, n_slides=spec.n_train_slides
    )
    test = plan_subset(
        seed=spec.seed, subset="test", n_patches=spec.n_test, n_slides=spec.n_test_slides
    )
    with progress("drawing", len(train) + len(test), "patches", log) as advance:
        write_archive(
            paths.SAMPLE_ARCHIVE,
            train=train,
            test=test,
            workers=params.runtime.workers,
            advance=advance,
        )
    for plan in (train, test):
        log.info(describe(plan))
    log.info(f"wrote {paths.SAMPLE_ARCHIVE.relative_to(paths.ROOT)}")


if __name__ == "__main__":
    run(main)
