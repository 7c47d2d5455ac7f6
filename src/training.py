"""What ``train`` and ``finetune`` share: patches, class weights, the MLflow run, what is saved."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from logging import Logger
from pathlib import Path
from typing import TYPE_CHECKING, Any

from src import paths
from src.params import Params, TrainParams
from src.system.code import training_code_digest
from src.system.determinism import Environment
from src.system.durable import clear_leftovers
from src.system.locks import taking_turns

if TYPE_CHECKING:
    import keras

    from src.model.phases import Fitted, Setting

FitPhase = Callable[["Setting"], "Fitted"]

_CHANGES_ROUNDING = {"xla", "mixed_precision"}
_IDENTIFIES_DATA = ("content_digest", "split_sha256")


def run_phase(
    *,
    stage: str,
    classifier: "keras.Model",
    fit_phase: FitPhase,
    folder: Path,
    params: Params,
    section: TrainParams,
    environment: Environment,
    parent_run_id: str | None,
    fresh: bool,
    log: Logger,
) -> None:
    """Fit one phase inside its MLflow run; write ``folder``, then log what was written.

    ``fit_phase`` changes ``classifier`` in place. An interrupted phase goes on, in the run it was
    in; one that was finished isn't trained again; ``fresh`` forgets both. The files are written
    before the run is completed, so a tracking server that fails costs no training. Two at once take
    turns.
    """
    from src.data.dataset import dataset_identity, load_split, split_kind
    from src.evaluation.figures import learning_curves
    from src.evaluation.metrics import auroc
    from src.model.checkpoint import Checkpoint, work_key
    from src.model.class_weights import class_weights
    from src.model.inference import MODEL_FILE
    from src.model.phases import Setting
    from src.model.saving import save_phase
    from src.model.weights import weights_sha256
    from src.tracking.runs import RunRecord, training_run

    train, val = load_split("train"), load_split("val")
    weights = class_weights(train.labels, section.class_weights)
    split = split_kind()
    initial_sha256 = weights_sha256(classifier)
    log.info(
        f"{len(train):,} patches, {100 * train.labels.mean():.1f} % tumour; class weights "
        f"normal {weights.normal:.3f}, tumour {weights.tumour:.3f}"
    )
    if not split.slide_disjoint:
        log.warning(f"val scores are optimistic: groups are {split.groups_are}, not slides")
    recorded = recorded_params(params, stage)
    dataset = dataset_identity(train, val)
    identity = work_identity(
        params, stage, dataset=dataset, initial_sha256=initial_sha256, environment=environment
    )
    record = RunRecord(
        stage=stage,
        params=recorded,
        dataset=dataset,
        class_weights=weights.as_dict(),
        schedule=section.schedule.model_dump(),
        initial_weights_sha256=initial_sha256,
        slide_disjoint=split.slide_disjoint,
        groups_are=split.groups_are,
        parent_run_id=parent_run_id,
        work_key=work_key(identity),
    )
    state = paths.CHECKPOINTS / f"{stage}.npz"
    waiting = f"another {stage} is running in this folder: waiting for it"
    with taking_turns(paths.CHECKPOINTS / f"{stage}.lock", waiting=waiting, log=log):
        clear_leftovers(state)
        checkpoint = Checkpoint(state, identity=identity, log=log)
        if fresh:
            checkpoint.discard()
        with training_run(record, fresh=fresh) as run:
            setting = Setting(
                train=train,
                val=val,
                weights=weights,
                initial_sha256=initial_sha256,
                model=params.model,
                cache=params.cache,
                runtime=params.runtime,
                checkpoint=checkpoint,
                environment=environment,
                auroc=auroc,
                on_epoch=lambda epoch: run.log_epoch(epoch.epoch, asdict(epoch)),
                log=log,
            )
            fitted = fit_phase(setting)
            fit = fitted.facts
            about_run = {"run_id": run.run_id, "record": record.to_json()}
            save_phase(folder, classifier, fit=fit, timing=fitted.timing, run=about_run)
            curves = {"learning_curves": learning_curves(fit)}
            run.log_result(fit, fitted.timing, folder / MODEL_FILE, curves)
    _report(fit, fitted.timing, run.run_id, folder, log)


def work_identity(
    params: Params,
    stage: str,
    *,
    dataset: Mapping[str, Any],
    initial_sha256: str,
    environment: Environment,
) -> dict[str, Any]:
    """All that the result of a phase depends on: where one of it differs, training starts fresh."""
    return {
        "params": recorded_params(params, stage),
        "data": {name: dataset[name] for name in _IDENTIFIES_DATA},
        "initial_weights": initial_sha256,
        "environment": dict(environment),
        "runtime": params.runtime.model_dump(include=_CHANGES_ROUNDING),
        "code": training_code_digest(),
    }


def recorded_params(params: Params, stage: str) -> dict[str, Any]:
    """Every parameter that the result of a stage depends on, its own and those of its head."""
    sections = dict.fromkeys(("split", "model", "train", stage))
    return {**params.sections(*sections), "cache": {"dtype": params.cache.dtype}}


def _report(
    fit: dict[str, Any], timing: dict[str, Any], run_id: str, folder: Path, log: Logger
) -> None:
    best = fit["history"][fit["best_epoch"] - 1]
    log.info(
        f"best epoch {fit['best_epoch']} of {len(fit['history'])}: val AUROC "
        f"{best['val_auroc']:.4f}, val loss {best['val_loss']:.4f}; {timing['wall_s']:,.0f} s; "
        f"{folder.relative_to(paths.ROOT)}, MLflow run {run_id}"
    )
