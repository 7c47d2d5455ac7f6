"""The best setting beside the present one, over several seeds, trained as the stages would."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import Any

from src.params import Params
from src.system.errors import ProjectError
from src.tuning.worker import Job, score, write_to

N_SEEDS = 3
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Comparison:
    """Scores of both settings, seed by seed, and their mean difference (best minus present)."""

    seeds: list[int]
    present: list[float]
    best: list[float]
    gain: float
    low: float
    high: float


def compare(seeds: Sequence[int], present: Sequence[float], best: Sequence[float]) -> Comparison:
    """Mean of the paired differences with its 95 % interval (Student's t, n - 1 degrees).

    The seeds are paired: the same one draws the same order, views and head for both.
    """
    import numpy as np
    from scipy.stats import t

    differences = np.subtract(best, present)
    n = len(differences)
    gain = float(differences.mean())
    error = float(differences.std(ddof=1)) / n**0.5
    half = float(t.ppf(0.5 + CONFIDENCE / 2, n - 1)) * error
    return Comparison(list(seeds), list(present), list(best), gain, gain - half, gain + half)


def with_seed(params: Params, seed: int) -> Params:
    """Both phases with another seed."""
    return params.model_copy(
        update={
            "train": params.train.model_copy(update={"seed": seed}),
            "finetune": params.finetune.model_copy(update={"seed": seed}),
        }
    )


def confirm(job: Job, best: Mapping[str, Any]) -> Comparison:
    """Train both settings with three seeds in a process of their own; all epochs, all patches.

    Raises
    ------
    ProjectError
        A training failed.
    """
    import multiprocessing

    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(
        target=main,
        args=(replace(job, log_file=job.log_file.format(worker="confirm")), best, theirs),
    )
    process.start()
    theirs.close()
    try:
        answer = ours.recv()
    except EOFError as error:
        raise ProjectError(f"the confirmation died; see {job.log_file}") from error
    finally:
        if process.is_alive():
            process.terminate()
        process.join()
    if isinstance(answer, str):
        raise ProjectError(answer)
    return compare(**answer)


def main(job: Job, best: Mapping[str, Any], pipe: Connection) -> None:
    """Train, and send the scores through ``pipe``; a text where that fails."""
    from src.system.log import configure, get_logger
    from src.tuning.trial import load_data, run_trial
    from src.tuning.worker import start_for

    write_to(job.log_file)
    configure(job.params.runtime.verbosity)
    log = get_logger("tune")
    try:
        search = load_data(subset=None, seed=0)
        environment = start_for(job)
        seeds = [job.params.finetune.seed + i for i in range(N_SEEDS)]
        scores: dict[str, list[float]] = {"present": [], "best": []}
        for seed in seeds:
            for name, params in (("present", job.params), ("best", job.params.with_values(best))):
                result = run_trial(
                    with_seed(params, seed),
                    search,
                    environment=environment,
                    on_epoch=lambda _: None,
                    log=log,
                )
                scores[name].append(score(result.fit, params.tune.objective))
        pipe.send({"seeds": seeds, **scores})
    except ProjectError as error:
        pipe.send(str(error))
