"""Stage ``finetune``: the top residual blocks as well as the head."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from src import paths
from src.data.dataset import load_split
from src.params import load_params
from src.system.cli import run
from src.system.determinism import start_tensorflow
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
    log = get_logger("finetune")
    environment = start_tensorflow(params.runtime, seed=params.finetune.seed)

    from src.evaluation.figures import learning_curves
    from src.model.checkpoint import open_checkpoint
    from src.model.inference import MODEL_FILE, load_classifier
    from src.model.step import device_scope
    from src.model.training import RUN_FILE, describe_phase, fit_phase, save_phase
    from src.tracking.runs import RunRecord, training_run

    train, val = load_split("train"), load_split("val")
    with device_scope(int(environment["gpus"])):
        model = load_classifier(paths.HEAD_MODEL)
        facts, identity = describe_phase(model, train, val, params, "finetune", environment, log)
        head_run_id = str(read_json(paths.HEAD_MODEL / RUN_FILE)["run_id"])
        record = RunRecord(**facts, parent_run_id=head_run_id)
        with (
            open_checkpoint("finetune", identity, fresh=fresh, log=log) as checkpoint,
            training_run(record, fresh=fresh) as mlflow_run,
        ):
            fitted = fit_phase(
                model,
                train,
                val,
                params,
                "finetune",
                environment=environment,
                checkpoint=checkpoint,
                on_epoch=lambda epoch: mlflow_run.log_epoch(epoch.epoch, asdict(epoch)),
                log=log,
            )
            about_run = {"run_id": mlflow_run.run_id, "record": record.to_json()}
            # before the run is completed: a tracking server that fails costs no training
            save_phase(paths.FINETUNED_MODEL, model, fitted, run=about_run)
            mlflow_run.log_result(
                fitted.facts,
                fitted.timing,
                paths.FINETUNED_MODEL / MODEL_FILE,
                {"learning_curves": learning_curves(fitted.facts)},
            )
    log.info(
        f"{fitted.summary}; models/{paths.FINETUNED_MODEL.name}, MLflow run {mlflow_run.run_id}"
    )


if __name__ == "__main__":
    run(main)
