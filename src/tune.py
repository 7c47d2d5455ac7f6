"""Search for better parameters: ``python -m src.tune``, beside the pipeline.

Trials run the code of ``train`` and ``finetune``; studies, workers and reports: ``src/tuning``.
"""

from __future__ import annotations

import os
import re
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated, Any

import typer

from src import paths
from src.params import load_params
from src.system.cli import run
from src.system.errors import ProjectError
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
        bool, typer.Option("--other-data", help="With --apply: even though the data has changed.")
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
    or kill it: the same command goes on. Results: reports/tune, and one MLflow run per trial.

    Examples:

    * python -m src.tune

    * python -m src.tune --trials 40 --workers 2 --timeout 60

    * python -m src.tune --study deeper --storage postgresql://me@host/studies

    * python -m src.tune --confirm

    * python -m src.tune --apply, then: dvc repro
    """
    if other_data and (confirm or not apply):
        raise ProjectError(
            "--other-data goes with --apply, and without --confirm; see python -m src.tune --help"
        )
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", study):  # it becomes a file's name
        raise ProjectError(
            f"--study must be up to 100 letters, digits, dots, hyphens and underscores, the first "
            f"a letter or digit (got {study!r})"
        )
    params = load_params()
    given = {name: n for name, n in (("n_trials", trials), ("seed", seed)) if n is not None}
    params = params.model_copy(update={"tune": params.tune.model_copy(update=given)})
    configure(params.runtime.verbosity)
    log = get_logger("tune")
    from src.system.determinism import start_tensorflow, usable_cores

    environment = start_tensorflow(params.runtime, seed=params.train.seed)
    from src.system.code import training_code_digest
    from src.tracking.tuning_runs import ending_study_run, open_study_run
    from src.tuning import best as best_setting
    from src.tuning import study as studies
    from src.tuning.report import publish
    from src.tuning.trial import check_depths, data_digests
    from src.tuning.workers import search

    check_depths(params)
    url = studies.storage_url(storage)
    digests = data_digests(params)
    identity = studies.study_identity(params, data=digests, code=training_code_digest())
    comparison = None
    with studies.reporting(url):
        found = studies.begin_study(url, study, params, identity)
        then = found.user_attrs[studies.IDENTITY]
        is_spent = studies.is_spent(found.get_trials(deepcopy=False), params.tune.n_trials)
        if other_data or (apply and is_spent and not confirm):
            studies.check_identity(study, then, identity, goes_on=False, other_data=other_data)
            chosen = best_setting.best_of(found, params)
        else:
            studies.check_identity(study, then, identity)
            where = studies.without_password(url)
            log.info(f"study {study} in {where}, budget {params.tune.n_trials} trials")
            with studies.locked(url):
                parent_run_id = open_study_run(
                    study,
                    key=found.user_attrs[studies.KEY],
                    params={"tune": params.tune.model_dump(), "n_workers": workers},
                    tags={"data": digests["content_digest"]},
                )
            job = studies.Job(
                study=study,
                url=url,
                params=params,
                parent_run_id=parent_run_id,
                deadline_s=None if timeout is None else time.time() + 60 * timeout,
                threads=max(1, (params.runtime.threads or usable_cores()) // workers),
                sampler_seed=studies.next_seed(found, url, params.tune),
                log_file=str(paths.TUNE_LOGS / study),
            )
            with ending_study_run(parent_run_id):
                search(found, job, workers, worker_main, log)
                try:
                    if confirm:
                        chosen = best_setting.best_of(found, params)
                        comparison = best_setting.confirm(found, params, chosen, environment, log)
                finally:
                    publish(found, job, comparison, log)
                chosen = best_setting.best_of(found, params)
                best_setting.summarise(found, params, chosen, comparison, log)
    if comparison is not None and comparison.gain <= 0:
        log.info(
            "trained in full the best of the search is no better than params.yaml, which stays as "
            "it is: with more tune.epochs trials rank settings more as full training does"
        )
    elif apply:
        difference = best_setting.apply(paths.PARAMS, chosen.settings)
        if difference:
            print(difference)
        state = "has the best parameters now" if difference else "had the best parameters already"
        log.info(f"params.yaml {state}; next: dvc repro")
    else:
        name = "" if study == "tune" else f" --study {study}"
        where = "" if storage is None else " --storage URL"
        n = studies.count(found.get_trials(deepcopy=False), *studies.COUNTED)
        # the budget there is, so that applying searches no further
        log.info(f"next: python -m src.tune{name}{where} --trials {n} --apply, then: dvc repro")


def worker_main(job: Any, pipe: Connection) -> None:
    """Run a worker's process: TensorFlow is started before anything imports it.

    Its output goes to a file, native code's too: the terminal has the progress.
    """
    file = Path(job.log_file)
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        os.dup2(descriptor, stream.fileno())
    os.close(descriptor)
    configure(job.params.runtime.verbosity)
    from src.system.determinism import start_tensorflow

    os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")  # workers share the GPU
    runtime = job.params.runtime.model_copy(update={"threads": job.threads})
    environment = start_tensorflow(runtime, seed=job.params.train.seed)
    from src.tuning.workers import work

    work(job, environment, pipe)


if __name__ == "__main__":
    run(main)
