"""The best setting beside the present one, over several seeds, trained as the stages would."""

import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from logging import Logger
from multiprocessing.connection import Connection
from typing import Any

from src import paths
from src.params import Params
from src.system.durable import read_json, write_json
from src.system.errors import ProjectError
from src.system.progress import progress
from src.tuning.table import sign_of
from src.tuning.worker import Job, score, write_to

N_SEEDS = 3
CONFIDENCE = 0.95

_NAME = "confirm"  # of its log file


@dataclass(frozen=True)
class Comparison:
    """Scores of both settings, seed by seed, and by how much the best is better on average."""

    seeds: list[int]
    present: list[float]
    best: list[float]
    gain: float
    low: float
    high: float


def compare(
    seeds: Sequence[int], present: Sequence[float], best: Sequence[float], *, objective: str
) -> Comparison:
    """Mean of the paired differences with its 95 % interval (Student's t, n - 1 degrees).

    The seeds are paired: the same one draws the same order, views and head for both. A gain above 0
    is for the better whatever the objective.
    """
    import numpy as np
    from scipy.stats import t

    differences = sign_of(objective) * np.subtract(best, present)
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


def confirm(job: Job, best: Mapping[str, Any], log: Logger) -> Comparison:
    """Train both settings with three seeds in a process of their own; all epochs, all patches.

    Scores are kept on the way: after a kill, only what is missing is trained.

    Raises
    ------
    ProjectError
        A training failed.
    """
    import multiprocessing

    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=main, args=(job, best, theirs))
    process.start()
    theirs.close()
    n_epochs = N_SEEDS * sum(params.finetune.epochs for params in _settings(job, best).values())
    try:
        with progress("confirmed:", n_epochs, "epochs of fine-tuning", log) as advance:
            while isinstance(answer := ours.recv(), int):
                advance(answer)
    except EOFError as error:
        raise ProjectError(
            f"the confirmation died; see {job.log_file(_NAME)}, then run it again: what it has "
            "trained is kept"
        ) from error
    finally:
        if process.is_alive():
            process.terminate()
        process.join()
        ours.close()
    if isinstance(answer, str):
        raise ProjectError(answer)
    return compare(**answer, objective=job.params.tune.objective)


def seeds_after(seed: int) -> list[int]:
    """Those that follow: with ``seed`` itself the best was chosen, which flatters it."""
    return [seed + 1 + i for i in range(N_SEEDS)]


def main(job: Job, best: Mapping[str, Any], pipe: Connection) -> None:
    """Train, and send through ``pipe`` how many epochs are done, again and again, and at last the
    scores; a text where that fails.
    """
    from src.system.log import configure
    from src.tuning.stopping import stop_with_parent

    write_to(job.log_file(_NAME))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's affair: it sends SIGTERM
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    stop_with_parent()
    configure(job.params.runtime.verbosity)
    try:
        pipe.send(_scores(job, best, advance=pipe.send))
    except ProjectError as error:
        pipe.send(str(error))


def _settings(job: Job, best: Mapping[str, Any]) -> dict[str, Params]:
    return {"present": job.params, "best": job.params.with_values(best)}


def _scores(
    job: Job, best: Mapping[str, Any], *, advance: Callable[[int], object]
) -> dict[str, Any]:
    from src.system.log import get_logger
    from src.tuning.worker import start_for

    environment = start_for(job)  # before anything imports TensorFlow

    from src.tuning.phase import Search, result_key
    from src.tuning.search_data import load_data
    from src.tuning.trial import Trials

    settings = _settings(job, best)
    search = Search(
        load_data(subset=None, seed=0),
        environment,
        get_logger("tune"),
        depths=[params.finetune.depth for params in settings.values()],
    )
    trials = Trials(search)

    def train(params: Params) -> float:
        key = result_key(params, search, sections=("model", "train", "finetune"))
        objective = params.tune.objective
        left = params.finetune.epochs

        def hear(_: object) -> None:
            nonlocal left
            left -= 1
            advance(1)

        value = kept_score(
            f"{key[:32]}-{objective}", lambda: score(trials.run(params, hear).fit, objective)
        )
        advance(left)  # of a training that stopped early, or was kept
        return value

    seeds = seeds_after(job.params.finetune.seed)
    scores: dict[str, list[float]] = {name: [] for name in settings}
    for seed in seeds:
        for name, params in settings.items():
            scores[name].append(train(with_seed(params, seed)))
    return {"seeds": seeds, **scores}


def kept_score(key: str, train: Callable[[], float]) -> float:
    """The score kept under ``key``; trained now, and kept, where there is none."""
    file = paths.TUNE_CONFIRMED / f"{key}.json"
    if not file.exists():
        write_json(file, {"score": train()})
    return float(read_json(file)["score"])
