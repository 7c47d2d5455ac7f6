"""Stage ``train``: the head alone, on pooled features of the frozen backbone."""

from typing import Annotated

import typer

from src import paths
from src.params import Params, load_params
from src.system.cli import run
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
    train_head_stage(params, fresh=fresh)


def train_head_stage(params: Params, *, fresh: bool) -> None:
    """Start from the initial weights asked for, fit the head, save and log."""
    from src.model.classifier import build_classifier
    from src.model.phases import train_head
    from src.model.replicas import device_scope
    from src.model.weights import load_initial_weights
    from src.system.determinism import start_tensorflow
    from src.training import run_phase

    environment = start_tensorflow(params.runtime, seed=params.train.seed)
    with device_scope(int(environment["gpus"])):
        model = build_classifier(params.model)
        load_initial_weights(model, params.model)
        run_phase(
            stage="train",
            classifier=model,
            fit_phase=lambda setting: train_head(model, params.train, setting),
            folder=paths.HEAD_MODEL,
            params=params,
            section=params.train,
            environment=environment,
            parent_run_id=None,
            fresh=fresh,
            log=get_logger("train"),
        )


if __name__ == "__main__":
    run(main)
