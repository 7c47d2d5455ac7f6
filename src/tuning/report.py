"""The folder ``reports/tune``: a table of all trials, pictures for the browser, the best one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from html import escape
from logging import Logger
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
from optuna import visualization
from optuna.trial import FrozenTrial, TrialState
from plotly import graph_objects as go
from ruamel.yaml import YAML

from src import paths
from src.params import TuneParams
from src.patch import ORANGE
from src.system.durable import replacing_folder, write_json
from src.tracking.store import TrackingError
from src.tracking.tuning_runs import log_study
from src.tuning.space import trial_values
from src.tuning.study import Job, sign_of, state_of, why_failed

COLUMNS = ["trial", "state", "value", "epochs", "seconds", "retry_of", "run_id", "reason"]
DEPTH, RATE = "finetune.depth", "finetune.learning_rate"

_FEWEST_FOR_IMPORTANCES = 4
_HEAD = """<!doctype html><html lang="en"><head><meta charset="utf-8">
<title>Study {study}</title><style>body{{font-family:sans-serif;max-width:70rem;margin:auto}}
</style></head><body><h1>Study {study}</h1>"""


def best_trial(trials: Sequence[FrozenTrial], *, objective: str) -> FrozenTrial | None:
    """The complete trial with the best value, the first of equals; None where there is none."""
    complete = [t for t in trials if t.state == TrialState.COMPLETE and t.value is not None]
    return max(complete, key=lambda t: sign_of(objective) * (t.value or 0.0), default=None)


def retry_of(trial: FrozenTrial) -> int | None:
    """The number of the trial that this one stands in for, because its worker died."""
    number: int | None = trial.system_attrs.get("failed_trial")  # RetryHeartbeatStaleTrialCallback
    return number


def value_of(trial: FrozenTrial) -> float | None:
    """The objective at the kept epoch, of a pruned trial at its last one; None elsewhere."""
    reported = trial.intermediate_values
    if trial.state == TrialState.COMPLETE:
        return trial.value
    return reported[max(reported)] if trial.state == TrialState.PRUNED and reported else None


def shown(value: Any) -> str:
    """A parameter's value for people: 0.00002 is ``2e-05``."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def trials_table(trials: Sequence[FrozenTrial], tune: TuneParams) -> pd.DataFrame:
    """One row per trial, in order of number: :data:`COLUMNS`, then a column per dimension.

    ``value`` is as in :func:`value_of`, ``epochs`` are those reported, ``seconds`` wall time. The
    dimensions' columns hold the values as they are; None too where none was drawn.
    """
    rows = [
        {
            "trial": trial.number,
            "state": state_of(trial),
            "value": value_of(trial),
            "epochs": len(trial.intermediate_values),
            "seconds": None if trial.duration is None else trial.duration.total_seconds(),
            "retry_of": retry_of(trial),
            "run_id": trial.user_attrs.get("run_id"),
            "reason": why_failed(trial),
        }
        for trial in trials
    ]
    table = pd.DataFrame(rows, columns=COLUMNS)
    drawn = [trial_values(tune.space, trial) or {} for trial in trials]
    for name in tune.space:
        # as objects: pandas would turn null into NaN, and a whole number beside it into 2.0
        values = [each.get(name) for each in drawn]
        table[name] = pd.Series(values, index=table.index, dtype=object)
    return table


def publish(study: optuna.Study, job: Job, comparison: Any, log: Logger) -> None:
    """Write ``reports/tune`` and log it; a store that doesn't take it costs a warning.

    ``comparison`` is that of ``best.confirm``, or None.
    """
    tune = job.params.tune
    write_report(study, tune, confirmation=None if comparison is None else asdict(comparison))
    trials = study.get_trials(deepcopy=False)
    best = best_trial(trials, objective=tune.objective)
    metrics: dict[str, float] = {f"n_{s}": n for s, n in Counter(map(state_of, trials)).items()}
    tags: dict[str, str] = {}
    run_id = None if best is None else best.user_attrs.get("run_id")
    if best is not None and best.value is not None:
        metrics |= {"best_value": best.value, "best_trial": best.number}
        tags = {"best_run_id": str(run_id), "best_trial": str(best.number)}
    if comparison is not None:
        metrics["confirmed_gain"] = comparison.gain
    try:
        log_study(
            job.parent_run_id,
            metrics=metrics,
            tags=tags,
            folder=paths.TUNE_REPORT,
            only_model_of=run_id if tune.log_weights == "best" else None,
        )
    except TrackingError as error:
        log.warning(f"{error}; reports/tune has the result")


def write_report(
    study: optuna.Study,
    tune: TuneParams,
    *,
    confirmation: Mapping[str, Any] | None,
    folder: Path | None = None,
) -> None:
    """Write the folder as a whole: ``trials.csv``, ``index.html``, and what was found.

    ``best.yaml`` has the settings of the best trial, ``confirmation.json`` the comparison.
    """
    trials = study.get_trials(deepcopy=False)
    best = best_trial(trials, objective=tune.objective)
    with replacing_folder(folder or paths.TUNE_REPORT) as temporary:
        trials_table(trials, tune).to_csv(temporary / "trials.csv", index=False)
        (temporary / "index.html").write_text(page(study, tune), encoding="utf-8")
        if best is not None:
            nested: dict[str, Any] = {}
            for name, value in (trial_values(tune.space, best) or {}).items():
                *sections, key = name.split(".")
                inside = nested
                for section in sections:
                    inside = inside.setdefault(section, {})
                inside[key] = value
            YAML().dump(nested, temporary / "best.yaml")
        if confirmation is not None:
            write_json(temporary / "confirmation.json", dict(confirmation))


def page(study: optuna.Study, tune: TuneParams) -> str:
    """An HTML page with all pictures; plotly's script is inside, once, so it works offline."""
    parts = [_HEAD.format(study=escape(study.study_name))]
    for title, figure in figures(study, tune).items():
        figure.update_layout(title=title, template="plotly_white", height=480)
        html = figure.to_html(
            full_html=False, include_plotlyjs=len(parts) == 1, config={"displaylogo": False}
        )
        parts.append(html)
    if len(parts) == 1:
        parts.append("<p>No trial is complete, so there is nothing to show.</p>")
    return "\n".join([*parts, "</body></html>"])


def figures(study: optuna.Study, tune: TuneParams) -> dict[str, go.Figure]:
    """By title; those that these trials can't fill are left out."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if not complete:
        return {}
    target = tune.objective
    found = {
        "History": visualization.plot_optimization_history(study, target_name=target),
        "Parallel coordinates": visualization.plot_parallel_coordinate(study, target_name=target),
        "Slices": visualization.plot_slice(study, target_name=target),
    }
    # functional ANOVA needs some trials, and values that differ
    if len(complete) >= _FEWEST_FOR_IMPORTANCES and len({trial.value for trial in complete}) > 1:
        found["Importances"] = visualization.plot_param_importances(study, target_name=target)
    if DEPTH in tune.space and RATE in tune.space:
        found["Depth and rate"] = depth_rate_map(study, tune)
    return found


def depth_rate_map(study: optuna.Study, tune: TuneParams) -> go.Figure:
    """Score by unfreeze depth and fine-tuning rate; pruned trials are crosses, the best a star."""
    trials = study.get_trials(deepcopy=False)
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    pruned = [trial for trial in trials if trial.state == TrialState.PRUNED]
    best = best_trial(trials, objective=tune.objective)
    colours = {
        "color": [trial.value for trial in complete],
        "colorscale": "Viridis",
        "reversescale": tune.objective == "val_loss",
        "showscale": True,
    }
    star = {"symbol": "star-open", "size": 24, "color": ORANGE, "line_width": 2}
    figure = go.Figure()
    for name, group, marker in (
        ("pruned", pruned, {"symbol": "x", "color": "grey"}),
        ("complete", complete, {"size": 13, **colours}),
        ("best", [best] if best is not None else [], star),
    ):
        values = [trial_values(tune.space, trial) or {} for trial in group]
        figure.add_scatter(
            x=[each.get(DEPTH) for each in values],
            y=[each.get(RATE) for each in values],
            mode="markers",
            marker=marker,
            name=name,
            text=[f"trial {trial.number}: {value_of(trial)}" for trial in group],
        )
    figure.update_layout(legend={"orientation": "h"})
    figure.update_xaxes(title="unfreeze depth", dtick=1)
    return figure.update_yaxes(title="fine-tuning learning rate", type="log")
