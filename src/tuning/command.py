"""What ``python -m src.tune`` does: search, or apply what was found."""

import os
import re
import time
from dataclasses import dataclass, replace
from logging import Logger
from typing import TYPE_CHECKING, Any

from src import paths
from src.params import Params
from src.system.errors import ProjectError
from src.tuning import budget
from src.tuning.closing import Best, best_of, nothing_found, report, summarise
from src.tuning.identity import IDENTITY, check_applicable, check_same, study_identity
from src.tuning.worker import Job

if TYPE_CHECKING:
    import optuna

    from src.tuning.confirming import Comparison

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True)
class Options:
    """The command line; of what it says of ``tune`` only whether a budget was given."""

    trials: int | None = None
    n_workers: int = 1
    timeout_min: float | None = None
    study: str = "tune"
    storage: str | None = None
    apply: bool = False
    other_data: bool = False
    confirm: bool = False


def tune(params: Params, options: Options, log: Logger) -> None:
    """Begin the study or go on with it, report what it found, apply it where asked.

    Raises
    ------
    OtherStudy
        The study belongs to other data, code or parameters.
    NothingFound
        All trials failed or were pruned.
    StorageError
        The study's database can't be used.
    """
    from src.tuning.space import check_depths
    from src.tuning.storage import reporting, storage_url
    from src.tuning.study import begin_study, plain

    check_options(options)
    check_depths(params)
    url = storage_url(options.storage)
    with reporting(url):
        identity = plain(_identity(params))
        study = begin_study(url, options.study, params, identity)
        is_spent = budget.is_spent(study.get_trials(deepcopy=False), params.tune.n_trials)
        comparison: Comparison | None = None
        if options.other_data or (options.apply and is_spent and not options.confirm):
            best = _applicable(study, params, identity, other_data=options.other_data)
        else:
            best, comparison = _search(study, params, options, url, identity, log)
    if comparison is not None and comparison.gain <= 0:
        log.info(
            "trained in full the best of the search is no better than params.yaml, which stays as "
            "it is: more tune.epochs rank settings more as full training does"
        )
    elif options.apply:
        _apply(best, log)
    else:
        log.info(f"next: {_next_command(study, params, options)}, then: dvc repro")


def check_options(options: Options) -> None:
    """Refuse what doesn't go together, and names that don't fit into a file's."""
    if options.other_data and (options.confirm or not options.apply):
        raise ProjectError(
            "--other-data goes with --apply, and without --confirm; see python -m src.tune --help"
        )
    if not _NAME.fullmatch(options.study):
        raise ProjectError(
            f"--study must be up to 100 letters, digits, dots, hyphens and underscores, the first "
            f"a letter or digit (got {options.study!r})"
        )


def _identity(params: Params) -> dict[str, Any]:
    from src.data.dataset import dataset_identity
    from src.system.code import training_code_digest
    from src.tuning.search_data import load_data

    data = load_data(subset=params.tune.subset, seed=params.train.seed)
    about = dataset_identity(data.train, data.val)
    digests = {name: str(about[name]) for name in ("content_digest", "split_sha256")}
    return study_identity(
        params, data={**digests, "patches": data.digest}, code=training_code_digest()
    )


def _applicable(
    study: "optuna.Study", params: Params, identity: dict[str, Any], *, other_data: bool
) -> Best:
    then = study.user_attrs[IDENTITY]
    check_applicable(study.study_name, then, identity, other_data=other_data)
    best = best_of(study, params)
    if best is None:
        raise nothing_found(study, params)
    return best


def _search(
    study: "optuna.Study",
    params: Params,
    options: Options,
    url: str,
    identity: dict[str, Any],
    log: Logger,
) -> "tuple[Best, Comparison | None]":
    """Spend the budget, then report what there is, whatever happens to the confirmation."""
    from src.tracking.tuning_runs import study_run
    from src.tuning.storage import locked, shown
    from src.tuning.study import KEY

    check_same(options.study, study.user_attrs[IDENTITY], identity)
    log.info(f"study {options.study} in {shown(url)}, budget {params.tune.n_trials} trials")
    tracked = study_run(
        options.study,
        key=study.user_attrs[KEY],
        params={"tune": params.tune.model_dump(), "n_workers": options.n_workers},
        tags={"data": identity["data.content_digest"]},
        alone=lambda: locked(url),
    )
    with tracked as run_id:
        job = _job(params, options, url, study.user_attrs[KEY], run_id)
        if not budget.is_spent(study.get_trials(deepcopy=False), params.tune.n_trials):
            _work(study, job, options.n_workers, log)
        best = best_of(study, params)
        comparison: Comparison | None = None
        try:
            if options.confirm and best is not None:
                comparison = _confirmed(job, best, log)
        finally:
            report(study, job, best, comparison, log)
            if best is not None:
                summarise(study, params, best, comparison, log)
        if best is None:
            raise nothing_found(study, params)
    return best, comparison


def _job(params: Params, options: Options, url: str, key: str, run_id: str) -> Job:
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
        study_key=key,
        study_run_id=run_id,
        deadline_s=None if late is None else time.time() + 60 * late,
        logs=str(logs),
    )


def _work(study: "optuna.Study", job: Job, n_workers: int, log: Logger) -> None:
    from src.tuning.live import Watch
    from src.tuning.supervisor import Supervisor

    def trials() -> Any:
        return study.get_trials(deepcopy=False)

    def close_dead() -> None:
        _close_dead(log)

    try:
        with Watch(job.params, log).shown() as watch:
            Supervisor(job, n_workers, log=log, on_death=close_dead).run(
                is_finished=lambda: budget.is_spent(trials(), job.n_trials),
                n_ended=lambda: budget.n_ended(trials()),
                watch=lambda: watch.look(trials()),
            )
    finally:
        close_dead()


def _close_dead(log: Logger) -> None:
    from src.tracking.store import TrackingError
    from src.tracking.tuning_runs import close_dead

    try:
        close_dead()
    except TrackingError as error:
        log.warning(f"{error}; runs of dead workers are closed at the next start")


def _confirmed(job: Job, best: Best, log: Logger) -> "Comparison | None":
    from src.tuning.confirming import N_SEEDS, confirm

    if all(job.params.value(name) == value for name, value in best.settings.items()):
        log.info("the best setting is the present one: there is no gain to confirm")
        return None
    log.info(f"trains the best and the present setting with {N_SEEDS} seeds each")
    all_threads = job.params.runtime.threads or os.cpu_count() or 1
    found = confirm(replace(job, threads=all_threads), best.settings, log)
    for seed, present, best_value in zip(found.seeds, found.present, found.best, strict=True):
        log.info(f"seed {seed}: present {present:.4f}, best {best_value:.4f}")
    return found


def _next_command(study: "optuna.Study", params: Params, options: Options) -> str:
    """The command that applies what there is now, and searches no further."""
    trials = study.get_trials(deepcopy=False)
    name = "" if options.study == "tune" else f" --study {options.study}"
    where = "" if options.storage is None else " --storage URL"
    is_default = options.trials is None and budget.is_spent(trials, params.tune.n_trials)
    n = "" if is_default else f" --trials {budget.n_counted(trials)}"
    return f"python -m src.tune{name}{where}{n} --apply"


def _apply(best: Best, log: Logger) -> None:
    from src.tuning.applying import apply

    difference = apply(paths.PARAMS, best.settings)
    if not difference:
        log.info("params.yaml has the best parameters already")
        return
    print(difference)
    log.info("params.yaml has the best parameters now; next: dvc repro")
