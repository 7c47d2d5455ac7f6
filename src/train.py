"""Stage ``train``: the head alone, on pooled features of the frozen backbone."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from src import paths
from src.data.dataset import load_split
from src.params import load_params
from src.system.cli import run
from src.system.determinism import start_tensorflow
from src.system.log import configure, get_logger


def main(
    *,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Forget what an earlier run left.")
    ] = False,
) -> None:
    """Train the head on features of the frozen backbone: writes models/head and one MLflow run.

    Reads the packed patches and the split; weights, input size and pooling come from the section
    model of params.yaml, epochs, rate, schedule and class weights from the section train. A run
    that was killed goes on where it was, with the same result; a finished one isn't repeated.
    """
    params = load_params()
    configure(params.runtime.verbosity)
    log = get_logger("train")
    environment = start_tensorflow(params.runtime, seed=params.train.seed)

    from src.evaluation.figures import learning_curves
    from src.model.checkpoint import open_checkpoint
    from src.model.classifier import build_classifier
    from src.model.inference import MODEL_FILE
    from src.model.step import device_scope
    from src.model.training import describe_phase, fit_phase, save_phase
    from src.model.weights import load_initial_weights
    from src.tracking.runs import RunRecord, training_run

    train, val = load_split("train"), load_split("val")
    with device_scope(int(environment["gpus"])):
        model = build_classifier(params.model)
        load_initial_weights(model, params.model)
        facts, identity = describe_phase(model, train, val, params, "train", environment, log)
        record = RunRecord(**facts)
        with (
            open_checkpoint("train", identity, fresh=fresh, log=log) as checkpoint,
            training_run(record, fresh=fresh) as mlflow_run,
        ):
            fitted = fit_phase(
                model,
                train,
                val,
                params,
                "train",
                environment=environment,
                checkpoint=checkpoint,
                on_epoch=lambda epoch: mlflow_run.log_epoch(epoch.epoch, asdict(epoch)),
                log=log,
            )
            about_run = {"run_id": mlflow_run.run_id, "record": record.to_json()}
            # before the run is completed: a tracking server that fails costs no training
            save_phase(paths.HEAD_MODEL, model, fitted, run=about_run)
            mlflow_run.log_result(
                fitted.facts,
                fitted.timing,
                paths.HEAD_MODEL / MODEL_FILE,
                {"learning_curves": learning_curves(fitted.facts)},
            )
    folder = paths.HEAD_MODEL.relative_to(paths.ROOT)
    log.info(f"{fitted.summary}; {folder}, MLflow run {mlflow_run.run_id}")


if __name__ == "__main__":
    run(main)
