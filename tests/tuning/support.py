"""Small searches for the tests of tuning."""

from typing import Any

from src import paths
from src.params import Params, TuneParams, load_params


def params(**changes: Any) -> Params:
    """The sample preset with values by dotted name."""
    return load_params(paths.ROOT / "presets" / "sample.yaml").with_values(changes)


def tune(**changes: Any) -> TuneParams:
    """The section tune of the sample preset with ``changes``, validated."""
    sample = load_params(paths.ROOT / "presets" / "sample.yaml").tune
    return TuneParams.model_validate({**sample.model_dump(), **changes})


def score_trials(url: str, study: str, n_trials: int) -> None:
    """What a worker does, with a score that costs nothing; run in processes of their own."""
    from src.tuning.claiming import claim_and_run
    from src.tuning.study import load_study

    section = tune()
    claim_and_run(
        load_study(url, study, section),
        url,
        section,
        n_trials=n_trials,
        run=lambda _, values: 1.0 - abs(values["finetune.depth"] - 2) / 10,
        is_over=lambda: False,
        at_most=1000,
    )
