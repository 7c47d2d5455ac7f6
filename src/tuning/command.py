"""What ``python -m src.tune`` does, from the study's begin to its summary."""

import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from logging import Logger
from typing import TYPE_CHECKING, Any

from src import paths
from src.params import Params
from src.system.errors import ProjectError
from src.tuning import budget
from src.tuning.identity import IDENTITY, check_same, check_same_data, study_identity
from src.tuning.table import best_row, settings, shown, trials_table
from src.tuning.worker import Job

if TYPE_CHECKING:
    import optuna
    import pandas as pd

    from src.tuning.confirming import Comparison


class NothingFound(ProjectError):
    """No trial of the study is complete."""


@dataclass(frozen=True)
class Options:
    """The command line, but for what it says of ``tune``."""

    n_workers: int = 1
    timeout_min: float | None = None
    study: str = "tune"
    storage: str | None = None
    apply: bool = False
    other_data: bool = False
    confirm: bool = False


def search(params: Params, options: Options, log: Logger) -> None:
    """Begin the study or go on with it, report what it found, apply it where asked.

    Raises
    ------
    OtherStudy
        The study belongs to other data, code or parameters.
    NothingFound
        All trials failed or were pruned.
    """
    from src.tracking.tuning_runs import study_run
    from src.tuning.space import check_depths
    from src.tuning.storage import shown as shown_url
    from src.tuning.storage import storage_url
    from src.tuning.study import KEY, begin_study, plain

    check_options(options)
    check_depths(params)
    url = storage_url(options.storage)
    identity = plain(_identity(params))
    study = begin_study(url, options.study, params, identity)
    then = study.user_attrs[IDENTITY]
    is_spent = budget.is_spent(study.get_trials(deepcopy=False), params.tune.n_trials)
    if options.apply and (is_spent or options.other_data):
        if not options.other_data:
            check_same_data(options.study, then, identity)
    else:
        check_same(options.study, then, identity)
    if options.other_data:
        _apply(params, _best(study, params, options.study), log)
        return
    log.info(f"study {options.study} in {shown_url(url)}, budget {params.tune.n_trials} trials")
    tracked = study_run(
        options.study,
        key=study.user_attrs[KEY],
        params={"tune": params.tune.model_dump(), "n_workers": options.n_workers},
        tags={"data": identity["data.content_digest"]},
    )
    with tracked as run_id:
        job = _job(params, options, url, run_id)
        if not is_spent:
            _work(study, job, options.n_workers, log)
        best = _best(study, params, options.study)
        comparison = _confirmed(job, best, log) if options.confirm else None
        _report(study, params, options, run_id, best, comparison, log)
    _summarise(study, params, best, comparison, options, log)
    if options.apply:
        _apply(params, best, log)


def check_options(options: Options) -> None:
    """Refuse what doesn't go together."""
    if options.other_data and not options.apply:
        raise ProjectError("--other-data goes with --apply; see python -m src.tune --help")


def _identity(params: Params) -> dict[str, Any]:
    from src.data.identity import dataset_identity
    from src.system.code import training_code_digest
    from src.tuning.trial import load_data

    data = load_data(subset=params.tune.subset, seed=params.train.seed)
    about = dataset_identity(data.train, data.val)
    digests = {name: str(about[name]) for name in ("content_digest", "split_sha256")}
    return study_identity(
        params, data={**digests, "patches": data.digest}, code=training_code_digest()
    )


def _job(params: Params, options: Options, url: str, run_id: str) -> Job:
    n_threads = params.runtime.threads or os.cpu_count() or 1
    logs = paths.CACHE / "tune" / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    late = options.timeout_min
    return Job(
        study=options.study,
        url=url,
        params=params,
        n_trials=params.tune.n_trials,
        threads=max(1, n_threads // options.n_workers),
        worker=0,
        study_run_id=run_id,
        deadline_s=None if late is None else time.time() + 60 * late,
        log_file=str(logs / f"{options.study}-{{worker}}.log"),
    )


def _work(study: "optuna.Study", job: Job, n_workers: int, log: Logger) -> None:
    from src.tracking.tuning_runs import close_dead
    from src.tuning.live import Watch
    from src.tuning.supervisor import Supervisor

    def trials() -> Any:
        return study.get_trials(deepcopy=False)

    with Watch(job.params.tune, n_workers, log).shown() as watch:
        Supervisor(job, n_workers, log=log, on_death=close_dead).run(
            is_finished=lambda: budget.is_spent(trials(), job.n_trials),
            watch=lambda: watch.look(trials()),
        )


def _best(study: "optuna.Study", params: Params, name: str) -> "pd.Series":
    table = trials_table(study.get_trials(deepcopy=False), params.tune)
    best = best_row(table, objective=params.tune.objective)
    if best is not None:
        return best
    states = ", ".join(f"{n} {state}" for state, n in table["state"].value_counts().items())
    reasons = table["reason"].dropna()
    said = f"; the last reason: {reasons.iloc[-1]}" if len(reasons) else ""
    raise NothingFound(
        f"study {name} has no complete trial ({states or 'none'}){said}; narrow tune.space, or set "
        "tune.pruner: {name: none}, and start another: --study NAME"
    )


def _confirmed(job: Job, best: "pd.Series", log: Logger) -> "Comparison":
    from dataclasses import replace

    from src.tuning.confirming import N_SEEDS, confirm

    log.info(f"trains the best and the present setting with {N_SEEDS} seeds each")
    all_threads = job.params.runtime.threads or os.cpu_count() or 1
    return confirm(replace(job, threads=all_threads), settings(best, job.params.tune))


def _report(
    study: "optuna.Study",
    params: Params,
    options: Options,
    run_id: str,
    best: "pd.Series",
    comparison: "Comparison | None",
    log: Logger,
) -> None:
    from src.tracking.store import TrackingError
    from src.tracking.tuning_runs import log_study, log_trial_model
    from src.tuning.best import kept_model
    from src.tuning.report import importances_of, write_report

    table = trials_table(study.get_trials(deepcopy=False), params.tune)
    pictures = write_report(
        table,
        params.tune,
        study=options.study,
        best=settings(best, params.tune),
        importances=importances_of(study),
        confirmation=None if comparison is None else asdict(comparison),
    )
    counts = budget.count(study.get_trials(deepcopy=False))
    gain = {} if comparison is None else {"confirmed_gain": comparison.gain}
    try:
        log_study(
            run_id,
            metrics={
                "best_value": best["value"],
                "best_trial": best["trial"],
                **{f"n_{state}": n for state, n in counts.items()},
                **gain,
            },
            tags={"best_run_id": str(best["run_id"]), "best_trial": str(best["trial"])},
            folder=paths.TUNE_REPORT,
            figures=pictures,
        )
        model = kept_model(run_id, int(best["trial"]))
        if params.tune.log_weights == "best" and model is not None and best["run_id"]:
            _start_quietly(params)
            log_trial_model(str(best["run_id"]), model)
    except TrackingError as error:
        log.warning(f"{error}; reports/tune has the result")


def _start_quietly(params: Params) -> None:
    """MLflow imports TensorFlow to log a model; started here, it doesn't chat."""
    from src.system.determinism import start_tensorflow

    start_tensorflow(params.runtime.model_copy(update={"threads": 1, "device": "cpu"}), seed=0)


def _summarise(
    study: "optuna.Study",
    params: Params,
    best: "pd.Series",
    comparison: "Comparison | None",
    options: Options,
    log: Logger,
) -> None:
    counts = budget.count(study.get_trials(deepcopy=False))
    log.info(", ".join(f"{n} {state}" for state, n in sorted(counts.items())))
    found = settings(best, params.tune)
    present: Mapping[str, Any] = {name: params.value(name) for name in found}
    log.info(f"best: trial {best['trial']}, {params.tune.objective} {best['value']:.4f}")
    for name, value in found.items():
        was = "" if present[name] == value else f" (now {shown(present[name])})"
        log.info(f"  {name}: {shown(value)}{was}")
    log.info(_gain(study, best, comparison))
    name = "" if options.study == "tune" else f" --study {options.study}"
    where = "" if options.storage is None else " --storage URL"
    if not options.apply:
        log.info(f"next: python -m src.tune{name}{where} --apply, then: dvc repro")
    log.info(f"{paths.TUNE_REPORT.relative_to(paths.ROOT)}/index.html shows all trials")


def _gain(study: "optuna.Study", best: "pd.Series", comparison: "Comparison | None") -> str:
    from src.tuning.study import PRESENT

    if comparison is not None:
        return (
            f"gain over the present params.yaml: {comparison.gain:+.4f} "
            f"({comparison.low:+.4f} to {comparison.high:+.4f}, 95 %, {len(comparison.seeds)} "
            "seeds, on val, which chose it: expect less on holdout)"
        )
    first = [
        trial.value
        for trial in study.get_trials(deepcopy=False)
        if trial.user_attrs.get(PRESENT) and trial.state.name == "COMPLETE"
    ]
    if not first or first[0] is None:
        return "gain over the present params.yaml: not measured; see --confirm"
    return (
        f"gain over the params.yaml it began with: {best['value'] - first[0]:+.4f}, one seed; "
        "its uncertainty: --confirm"
    )


def _apply(params: Params, best: "pd.Series", log: Logger) -> None:
    from src.tuning.applying import apply

    difference = apply(paths.PARAMS, settings(best, params.tune))
    if not difference:
        log.info("params.yaml has the best parameters already")
        return
    print(difference)
    log.info("params.yaml has the best parameters now; next: dvc repro")
