"""What ``train`` and ``finetune`` share: patches, class weights, the MLflow run, what is saved."""

from collections.abc import Callable
from dataclasses import asdict
from logging import Logger
from pathlib import Path
from typing import TYPE_CHECKING, Any

from src.params import Params, TrainParams
from src.system.determinism import Environment

if TYPE_CHECKING:
    import keras

    from src.model.phases import Setting

FitPhase = Callable[["Setting"], dict[str, Any]]


def run_phase(
    *,
    stage: str,
    model: "keras.Model",
    fit_phase: FitPhase,
    folder: Path,
    params: Params,
    section: TrainParams,
    environment: Environment,
    parent_run_id: str | None,
    log: Logger,
) -> None:
    """Fit one phase inside its MLflow run; write ``folder``, then log what was written.

    ``fit_phase`` changes ``model`` in place and returns the content of ``fit.json``. The files are
    written before the run is completed, so a tracking server that fails costs no training.
    """
    from src.data.identity import dataset_identity, split_kind
    from src.data.labelled import load_split
    from src.evaluation.figures import learning_curves
    from src.evaluation.metrics import auroc
    from src.model.class_weights import class_weights
    from src.model.inference import MODEL_FILE
    from src.model.phases import Setting
    from src.model.saving import save_phase
    from src.model.weights import weights_sha256
    from src.tracking.runs import RunRecord, training_run

    train, val = load_split("train"), load_split("val")
    weights = class_weights(train.labels, section.class_weights)
    split = split_kind()
    initial_sha256 = weights_sha256(model)
    log.info(
        f"{len(train):,} patches, {100 * train.labels.mean():.1f} % tumour; class weights "
        f"normal {weights.normal:.3f}, tumour {weights.tumour:.3f}"
    )
    if not split.slide_disjoint:
        log.warning(f"val scores are optimistic: groups are {split.groups_are}, not slides")
    record = RunRecord(
        stage=stage,
        params=params.sections("split", "model", stage),
        dataset=dataset_identity(train, val),
        class_weights=weights.as_dict(),
        schedule=section.schedule.model_dump(),
        initial_weights_sha256=initial_sha256,
        slide_disjoint=split.slide_disjoint,
        groups_are=split.groups_are,
        parent_run_id=parent_run_id,
    )
    with training_run(record) as run:
        setting = Setting(
            train=train,
            val=val,
            weights=weights,
            initial_sha256=initial_sha256,
            model=params.model,
            runtime=params.runtime,
            identity={"params": dict(record.params), "dataset": dict(record.dataset)},
            environment=environment,
            auroc=auroc,
            on_epoch=lambda epoch: run.log_epoch(epoch.epoch, asdict(epoch)),
            log=log,
        )
        fit = fit_phase(setting)
        save_phase(folder, model, fit=fit, run={"run_id": run.run_id, "record": record.to_json()})
        run.log_result(fit, folder / MODEL_FILE, {"learning_curves": learning_curves(fit)})
    best = fit["history"][fit["best_epoch"] - 1]
    log.info(
        f"best epoch {fit['best_epoch']} of {len(fit['history'])}: val AUROC "
        f"{best['val_auroc']:.4f}, val loss {best['val_loss']:.4f}; "
        f"{fit['wall_s']:,.0f} s; MLflow run {run.run_id}"
    )
