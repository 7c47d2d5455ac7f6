"""The best setting of a study: compared with the present one, and written into ``params.yaml``."""

from __future__ import annotations

import difflib
import hashlib
import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from logging import Logger
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState
from ruamel.yaml import YAML
from scipy.stats import t

from src.params import Params, ParamsError, load_params
from src.system.determinism import Environment
from src.system.durable import replacing
from src.system.progress import progress
from src.tuning.report import best_trial, shown
from src.tuning.space import PRESENT, TuneError, trial_values
from src.tuning.study import is_spent, sign_of, state_of, why_failed
from src.tuning.trial import Search, load_data, run_trial, score

N_SEEDS = 3
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Best:
    """The complete trial with the best value, and its settings by dotted name."""

    trial: FrozenTrial
    settings: dict[str, Any]


@dataclass(frozen=True)
class Comparison:
    """Scores of both settings, seed by seed, and by how much the best is better on average."""

    seeds: list[int]
    present: list[float]
    best: list[float]
    gain: float
    low: float
    high: float


def best_of(study: optuna.Study, params: Params) -> Best:
    """The best trial so far."""
    trials = study.get_trials(deepcopy=False)
    found = best_trial(trials, objective=params.tune.objective)
    if found is not None:
        return Best(found, trial_values(params.tune.space, found) or {})
    reasons = [reason for trial in trials if (reason := why_failed(trial))]
    said = f"; the last reason: {reasons[-1]}" if reasons else ""
    way_out = (
        "narrow tune.space, or set tune.pruner: {name: none}, and start another: --study NAME"
        if is_spent(trials, params.tune.n_trials)
        else "the same command goes on; a --timeout must leave time for one trial"
    )
    raise TuneError(
        f"study {study.study_name} has no complete trial ({counts(trials) or 'none began'}){said}; "
        f"{way_out}"
    )


def counts(trials: Sequence[FrozenTrial]) -> str:
    """``4 complete, 1 failed``."""
    return ", ".join(f"{n} {state}" for state, n in sorted(Counter(map(state_of, trials)).items()))


def compare(
    seeds: Sequence[int], present: Sequence[float], best: Sequence[float], *, objective: str
) -> Comparison:
    """Mean of the paired differences with its 95 % interval (Student's t, n - 1 degrees).

    The seeds are paired: the same one draws the same order, views and head for both. A gain above 0
    is an improvement whatever the objective.
    """
    differences = sign_of(objective) * np.subtract(best, present)
    n = len(differences)
    gain = float(differences.mean())
    standard_error = float(differences.std(ddof=1)) / n**0.5
    half = float(t.ppf(0.5 + CONFIDENCE / 2, n - 1)) * standard_error
    return Comparison(list(seeds), list(present), list(best), gain, gain - half, gain + half)


def confirm(
    study: optuna.Study, params: Params, best: Best, environment: Environment, log: Logger
) -> Comparison | None:
    """Train the best and the present setting with three other seeds; all epochs, all patches.

    Not with the seed that chose the best: it flatters it. Each score is kept in the study, so after
    a kill only the missing ones are trained. None where the best setting is the present one.
    """
    if all(params.value(name) == value for name, value in best.settings.items()):
        log.info("the best setting is the present one: there is no gain to confirm")
        return None
    log.info(f"trains the best and the present setting with {N_SEEDS} seeds each")
    settings = {"present": params, "best": params.with_values(best.settings)}
    search = Search(
        load_data(subset=None, seed=0),
        environment,
        log,
        depths=[each.finetune.depth for each in settings.values()],
    )
    seeds = [params.finetune.seed + 1 + i for i in range(N_SEEDS)]
    scores: dict[str, list[float]] = {name: [] for name in settings}
    with progress("confirmed:", N_SEEDS * len(settings), "trainings", log) as advance:
        for seed in seeds:
            for name, setting in settings.items():
                seeded = setting.with_values({"train.seed": seed, "finetune.seed": seed})
                about = json.dumps(seeded.sections("model", "train", "finetune"), sort_keys=True)
                key = f"confirmed {hashlib.sha256(about.encode()).hexdigest()[:32]}"
                if key not in study.user_attrs:
                    _, fit = run_trial(seeded, search)
                    study.set_user_attr(key, score(fit, params.tune.objective))
                scores[name].append(float(study.user_attrs[key]))
                advance(1)
            log.info(
                f"seed {seed}: present {scores['present'][-1]:.4f}, best {scores['best'][-1]:.4f}"
            )
    return compare(seeds, scores["present"], scores["best"], objective=params.tune.objective)


def summarise(
    study: optuna.Study, params: Params, best: Best, comparison: Comparison | None, log: Logger
) -> None:
    """Say what was found, and what it gains."""
    trials = study.get_trials(deepcopy=False)
    log.info(counts(trials))
    log.info(f"best: trial {best.trial.number}, {params.tune.objective} {best.trial.value:.4f}")
    for name, value in best.settings.items():
        now = params.value(name)
        log.info(f"  {name}: {shown(value)}" + ("" if now == value else f" (now {shown(now)})"))
    if comparison is not None:
        log.info(
            f"gain over the present params.yaml: {comparison.gain:+.4f} "
            f"({comparison.low:+.4f} to {comparison.high:+.4f}, 95 %, {len(comparison.seeds)} "
            "seeds, on val, which chose it: expect less on holdout); "
            + ("significant" if comparison.low > 0 else "not significant")
        )
        return
    present = [t for t in trials if PRESENT in t.user_attrs and t.state == TrialState.COMPLETE]
    if present:
        gain = sign_of(params.tune.objective) * (best.trial.values[0] - present[0].values[0])
        log.info(f"gain over the params.yaml it began with: {gain:+.4f}, one seed; see --confirm")
    else:
        log.info("gain over the present params.yaml: not measured; see --confirm")


def apply(path: Path, values: Mapping[str, Any]) -> str:
    """Write ``values``, by dotted name, into a YAML file; comments and order stay.

    The result is checked before the file is replaced. Returns the difference, or nothing.
    """
    wanted = load_params(path).with_values(values)
    before = path.read_text(encoding="utf-8")
    after = changed_text(before, values)
    with replacing(path) as temporary:
        temporary.write_text(after, encoding="utf-8")
        try:
            written = load_params(temporary)
        except ParamsError as error:
            raise ParamsError(str(error).replace(temporary.name, path.name)) from error
        for name in values:
            if written.value(name) != wanted.value(name):
                raise TuneError(
                    f"{path.name}: {name} would read as {written.value(name)!r}, not "
                    f"{wanted.value(name)!r}; write it there by hand"
                )
    lines = difflib.unified_diff(
        before.splitlines(), after.splitlines(), path.name, path.name, lineterm="", n=1
    )
    return "\n".join(lines)


def changed_text(text: str, values: Mapping[str, Any]) -> str:
    """``text`` of a YAML file with other values by dotted name."""
    yaml = YAML()
    # ruamel writes nothing for null, as in "augment:"
    yaml.representer.add_representer(
        type(None), lambda r, _: r.represent_scalar("tag:yaml.org,2002:null", "null")
    )
    yaml.preserve_quotes = True
    yaml.width = 10_000
    document = yaml.load(text)
    for name, value in values.items():
        *sections, key = name.split(".")
        inside = document
        for section in sections:
            if section not in inside:
                raise TuneError(f"params.yaml has no {'.'.join(sections)}; add it, then again")
            inside = inside[section]
        if inside.get(key) != value:
            inside[key] = value
    out = io.StringIO()
    yaml.dump(document, out)
    return out.getvalue()
