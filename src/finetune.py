"""Stage ``finetune``: the top residual blocks as well as the head."""

from typing import Annotated

import typer

from src import paths
from src.params import Params, load_params
from src.system.cli import run
from src.system.durable import read_json
from src.system.log import configure, get_logger


def main(
    *,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Forget what an earlier run left.")
    ] = False,
) -> None:
    """Fine-tune the top finetune.depth residual blocks: writes models/finetuned and one MLflow run.

    Starts from models/head; depth, BatchNorm mode, rate, schedule and class weights come from the
    section finetune of params.yaml. A run that was killed goes on where it was, with the same
    result; a finished one isn't repeated.
    """
    params = load_params()
    configure(params.runtime.verbosity)
    finetune_stage(params, fresh=fresh)


def finetune_stage(params: Params, *, fresh: bool) -> None:
    """Start from the trained head, fit the top blocks, save and log."""
    from src.model.inference import load_classifier
    from src.model.phases import finetune_top
    from src.model.replicas import device_scope
    from src.model.saving import RUN_FILE
    from src.system.determinism import start_tensorflow
    from src.training import run_phase

    environment = start_tensorflow(params.runtime, seed=params.finetune.seed)
    with device_scope(int(environment["gpus"])):
        model = load_classifier(paths.HEAD_MODEL)
        run_phase(
            stage="finetune",
            classifier=model,
            fit_phase=lambda setting: finetune_top(model, params.finetune, setting),
            folder=paths.FINETUNED_MODEL,
            params=params,
            section=params.finetune,
            environment=environment,
            parent_run_id=str(read_json(paths.HEAD_MODEL / RUN_FILE)["run_id"]),
            fresh=fresh,
            log=get_logger("finetune"),
        )


if __name__ == "__main__":
    run(main)
