"""Search for better parameters: ``python -m src.tune``, beside the pipeline.

Trials run the code of ``train`` and ``finetune``; studies, workers and reports: ``src/tuning``.
"""

from typing import Annotated

import typer

from src.params import Params, load_params
from src.system.cli import run
from src.system.log import configure, get_logger


def main(
    trials: Annotated[
        int | None,
        typer.Option(
            help="Budget of the study, complete and pruned trials; default: tune.n_trials.", min=1
        ),
    ] = None,
    workers: Annotated[int, typer.Option(help="Processes that run trials.", min=1, max=256)] = 1,
    timeout: Annotated[
        float | None, typer.Option(help="Minutes after which no trial begins.", min=0)
    ] = None,
    study: Annotated[str, typer.Option(help="The study's name.")] = "tune",
    storage: Annotated[
        str | None,
        typer.Option(help="sqlite:///FILE or postgresql://USER@HOST/DATABASE; default: tune.db."),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Of the sampler; default: tune.seed.", min=0)
    ] = None,
    apply: Annotated[
        bool, typer.Option("--apply", help="Write the best parameters into params.yaml.")
    ] = False,
    other_data: Annotated[
        bool, typer.Option("--other-data", help="With --apply: though the data is another.")
    ] = False,
    confirm: Annotated[
        bool,
        typer.Option(
            "--confirm",
            help="Train the best and the present setting with 3 seeds each; with --apply, only a "
            "best that is better is written.",
        ),
    ] = False,
) -> None:
    """Search the space of params.yaml (section tune) for the best val AUROC; holdout stays closed.

    All trials share the activations of the frozen layers; bad ones end early. Stop it with Ctrl-C,
    or kill it: the same command goes on. Results: reports/tune, and one MLflow run a trial.

    Examples:

    * python -m src.tune

    * python -m src.tune --trials 40 --workers 2 --timeout 60

    * python -m src.tune --study deeper --storage postgresql://me@host/studies

    * python -m src.tune --confirm

    * python -m src.tune --apply, then: dvc repro
    """
    from src.tuning.command import Options, tune

    params = load_params()
    configure(params.runtime.verbosity)
    options = Options(
        trials=trials,
        n_workers=workers,
        timeout_min=timeout,
        study=study,
        storage=storage,
        apply=apply,
        other_data=other_data,
        confirm=confirm,
    )
    tune(with_options(params, n_trials=trials, seed=seed), options, get_logger("tune"))


def with_options(params: Params, *, n_trials: int | None, seed: int | None) -> Params:
    """The parameters with what the command line says of ``tune``."""
    changes = {"n_trials": n_trials, "seed": seed}
    given = {name: value for name, value in changes.items() if value is not None}
    return params.model_copy(update={"tune": params.tune.model_copy(update=given)})


if __name__ == "__main__":
    run(main)
