"""The folder ``reports/tune``: best.yaml, trials.csv, pictures as PNG, and index.html."""

import io
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from src import paths
from src.params import TuneParams
from src.system.durable import replacing_folder, write_json

if TYPE_CHECKING:
    import optuna
    import pandas as pd
    from matplotlib.figure import Figure

_FEWEST_FOR_IMPORTANCES = 4


def write_report(
    table: "pd.DataFrame",
    tune: TuneParams,
    *,
    study: str,
    best: Mapping[str, Any] | None,
    importances: Mapping[str, float],
    confirmation: Mapping[str, Any] | None,
    folder: Path | None = None,
) -> "dict[str, Figure]":
    """Write the folder whole; returns the pictures. ``best`` holds values by dotted name."""
    from src.tuning.interactive import page
    from src.tuning.pictures import of_study

    pictures = of_study(table, tune, importances)
    with replacing_folder(folder or paths.TUNE_REPORT) as temporary:
        table.to_csv(temporary / "trials.csv", index=False)
        if best is not None:
            (temporary / "best.yaml").write_text(as_yaml(best), encoding="utf-8")
        if confirmation is not None:
            write_json(temporary / "confirmation.json", dict(confirmation))
        for name, figure in pictures.items():
            figure.savefig(temporary / f"{name}.png")
        html = page(table, tune, importances, study=study)
        (temporary / "index.html").write_text(html, encoding="utf-8")
    return pictures


def as_yaml(values: Mapping[str, Any]) -> str:
    """Values by dotted name as sections, like ``params.yaml``."""
    from ruamel.yaml import YAML

    nested: dict[str, Any] = {}
    for name, value in values.items():
        *sections, key = name.split(".")
        inside = nested
        for section in sections:
            inside = inside.setdefault(section, {})
        inside[key] = value
    yaml = YAML()
    out = io.StringIO()
    yaml.dump(nested, out)
    return out.getvalue()


def importances_of(study: "optuna.Study") -> dict[str, float]:
    """Share of the variance each parameter explains; empty for fewer than four complete trials."""
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances
    from optuna.trial import TrialState

    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len(complete) < _FEWEST_FOR_IMPORTANCES or len({trial.value for trial in complete}) == 1:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return dict(get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=0)))
