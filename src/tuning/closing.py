"""What a study leaves with a person: the report, MLflow's copy of it, and a few lines."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from logging import Logger
from typing import TYPE_CHECKING, Any

from src import paths
from src.params import Params
from src.system.errors import ProjectError
from src.tuning import budget
from src.tuning.space import PRESENT, trial_values
from src.tuning.storage import locked
from src.tuning.table import best_trial, shown, sign_of, trials_table
from src.tuning.worker import WEIGHTS, Job

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

    from src.tuning.confirming import Comparison


class NothingFound(ProjectError):
    """No trial of the study is complete."""


@dataclass(frozen=True)
class Best:
    """The complete trial with the best score.

    Attributes
    ----------
    value : the objective at the epoch whose weights are kept
    settings : values by dotted name
    run_id : MLflow's, None where it didn't take the trial
    sha256 : of the final weights
    """

    number: int
    value: float
    settings: dict[str, Any]
    run_id: str | None
    sha256: str


def best_of(study: "optuna.Study", params: Params) -> Best | None:
    """The best trial so far; None where none is complete."""
    trials = study.get_trials(deepcopy=False)
    found = best_trial(trials, objective=params.tune.objective)
    if found is None or found.value is None:
        return None
    return Best(
        number=found.number,
        value=found.value,
        settings=trial_values(params.tune.space, found) or {},
        run_id=found.user_attrs.get("run_id"),
        sha256=str(found.user_attrs.get(WEIGHTS, "")),
    )


def nothing_found(study: "optuna.Study", params: Params) -> NothingFound:
    """Why there is no best trial, and what to do."""
    trials = study.get_trials(deepcopy=False)
    states = ", ".join(f"{n} {state}" for state, n in sorted(budget.count(trials).items()))
    reasons = [reason for trial in trials if (reason := budget.why_failed(trial))]
    said = f"; the last reason: {reasons[-1]}" if reasons else ""
    way_out = (
        "narrow tune.space, or set tune.pruner: {name: none}, and start another: --study NAME"
        if budget.is_spent(trials, params.tune.n_trials)
        else "the same command goes on; a --timeout must leave time for one trial"
    )
    return NothingFound(
        f"study {study.study_name} has no complete trial ({states or 'none began'}){said}; "
        f"{way_out}"
    )


def report(
    study: "optuna.Study",
    job: Job,
    best: Best | None,
    comparison: "Comparison | None",
    log: Logger,
) -> None:
    """Write ``reports/tune`` and log it; a store that doesn't take it costs a warning."""
    from src.tracking.store import TrackingError
    from src.tracking.tuning_runs import log_study
    from src.tuning.report import importances_of, write_report

    trials, tune = study.get_trials(deepcopy=False), job.params.tune
    pictures = write_report(
        trials_table(trials, tune),
        tune,
        study=job.study,
        best=None if best is None else best.settings,
        importances=importances_of(study),
        confirmation=None if comparison is None else asdict(comparison),
    )
    metrics: dict[str, float] = {f"n_{state}": n for state, n in budget.count(trials).items()}
    tags = {}
    if best is not None:
        metrics |= {"best_value": best.value, "best_trial": best.number}
        tags = {"best_run_id": str(best.run_id), "best_trial": str(best.number)}
    if comparison is not None:
        metrics["confirmed_gain"] = comparison.gain
    try:
        log_study(
            job.study_run_id,
            metrics=metrics,
            tags=tags,
            folder=paths.TUNE_REPORT,
            figures=pictures,
        )
        if best is not None and tune.log_weights == "best":
            _log_weights(job, best, log)
    except TrackingError as error:
        log.warning(f"{error}; reports/tune has the result")


def _log_weights(job: Job, best: Best, log: Logger) -> None:
    """Only the best trial of a study has a model in MLflow, and it is logged once."""
    from src.tracking.tuning_runs import has_model, log_best_model
    from src.tuning.best import kept_model

    if best.run_id is None:
        return
    with locked(job.url):  # two that end at once would log it twice
        if has_model(best.run_id, best.sha256):
            return
        model = kept_model(job.study_key, best.sha256)
        if model is None:
            log.warning(f"the weights of trial {best.number} were not kept: --apply, dvc repro")
            return
        _start_quietly(job.params)
        log_best_model(job.study_run_id, best.run_id, model, sha256=best.sha256)


def _start_quietly(params: Params) -> None:
    """MLflow imports TensorFlow to log a model; started here, it doesn't chat."""
    from src.system.determinism import start_tensorflow

    start_tensorflow(params.runtime.model_copy(update={"threads": 1, "device": "cpu"}), seed=0)


def summarise(
    study: "optuna.Study", params: Params, best: Best, comparison: "Comparison | None", log: Logger
) -> None:
    """Say what was found, and what it gains."""
    trials = study.get_trials(deepcopy=False)
    counts = budget.count(trials)
    log.info(", ".join(f"{n} {state}" for state, n in sorted(counts.items())))
    present: Mapping[str, Any] = {name: params.value(name) for name in best.settings}
    log.info(f"best: trial {best.number}, {params.tune.objective} {best.value:.4f}")
    for name, value in best.settings.items():
        was = "" if present[name] == value else f" (now {shown(present[name])})"
        log.info(f"  {name}: {shown(value)}{was}")
    log.info(_confirmed(comparison) if comparison is not None else _measured(trials, params, best))
    log.info(f"{paths.TUNE_REPORT.relative_to(paths.ROOT)}/index.html shows all trials")


def _confirmed(comparison: "Comparison") -> str:
    return (
        f"gain over the present params.yaml: {comparison.gain:+.4f} "
        f"({comparison.low:+.4f} to {comparison.high:+.4f}, 95 %, {len(comparison.seeds)} "
        "seeds, on val, which chose it: expect less on holdout)"
    )


def _measured(trials: "list[FrozenTrial]", params: Params, best: Best) -> str:
    first = [
        trial.value
        for trial in trials
        if trial.user_attrs.get(PRESENT) and trial.state.name == "COMPLETE"
    ]
    if not first or first[0] is None:
        return "gain over the present params.yaml: not measured; see --confirm"
    gain = sign_of(params.tune.objective) * (best.value - first[0])
    return (
        f"gain over the params.yaml it began with: {gain:+.4f}, one seed; "
        "its uncertainty: --confirm"
    )
