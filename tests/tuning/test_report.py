"""The table of trials, its pictures and its page, from trials made by hand."""

from __future__ import annotations

import csv

import optuna
import pytest
from optuna.trial import TrialState, create_trial

from src.system.durable import verify_folder
from src.tuning.report import best_trial, figures, page, trials_table, write_report
from src.tuning.space import distributions, trial_values
from tests.tuning.support import tune


def _trial(state=TrialState.COMPLETE, value=None, depth=1, rate=1e-4, reported=None):
    drawn = {
        "finetune.depth": depth,
        "finetune.learning_rate": rate,
        "finetune.batch_norm": "frozen",
        "train.learning_rate": 0.0005,
    }
    return create_trial(
        state=state,
        value=value,
        params=drawn,
        distributions=distributions(tune().space),
        intermediate_values=reported or {},
    )


@pytest.fixture
def study():
    study = optuna.create_study(direction="maximize", study_name="<s>")
    study.add_trials(
        [
            _trial(value=0.7, depth=0),
            _trial(value=0.9, depth=2, rate=2e-5),
            _trial(state=TrialState.PRUNED, reported={1: 0.5, 2: 0.6}),
            _trial(value=0.8, depth=3),
            _trial(state=TrialState.FAIL),
            _trial(value=0.6, depth=3, rate=1e-3),
        ]
    )
    return study


@pytest.mark.parametrize(("objective", "number"), [("val_auroc", 1), ("val_loss", 5)])
def test_the_best_is_a_complete_trial_by_the_objective(study, objective, number):
    """Catches the lowest AUROC or highest loss as best, and pruned trials among them."""
    assert best_trial(study.trials, objective=objective).number == number
    pruned = [trial for trial in study.trials if trial.state == TrialState.PRUNED]
    assert best_trial(pruned, objective=objective) is None


def test_the_map_marks_the_best(study):
    """Catches the star on another trial, and pruned trials among the complete ones."""
    by_name = {trace.name: trace for trace in figures(study, tune())["Depth and rate"].data}
    assert (by_name["best"].x, by_name["best"].y) == ((2,), (2e-5,))
    assert by_name["complete"].x == (0, 2, 3, 3)
    assert len(by_name["pruned"].x) == 1


def test_the_page_has_every_picture_and_needs_no_network(study):
    """Catches a script that is loaded from elsewhere, and one copy of it per picture."""
    html = page(study, tune())
    assert "<script src=" not in html
    assert html.count("plotly.js v") == 1
    assert "&lt;s&gt;" in html
    for title in ("History", "Parallel coordinates", "Slices", "Importances", "Depth and rate"):
        assert title in html


def test_a_study_without_a_complete_trial_has_no_pictures():
    """Catches a traceback from a plot of nothing."""
    study = optuna.create_study()
    study.add_trial(_trial(state=TrialState.FAIL))
    assert figures(study, tune()) == {}
    assert "nothing to show" in page(study, tune())


def test_the_folder_has_every_file(study, tmp_path, monkeypatch):
    """Catches a table without the reason of a failure, and a best.yaml of another trial."""
    monkeypatch.setattr("src.paths.CACHE", tmp_path / "cache")
    write_report(study, tune(), confirmation={"gain": 0.1}, folder=tmp_path / "tune")
    files = {"trials.csv", "best.yaml", "index.html", "confirmation.json"}
    assert set(verify_folder(tmp_path / "tune")) == files
    assert "depth: 2" in (tmp_path / "tune" / "best.yaml").read_text()
    rows = list(csv.DictReader((tmp_path / "tune" / "trials.csv").read_text().splitlines()))
    assert [rows[2]["state"], rows[2]["value"], rows[2]["epochs"]] == ["pruned", "0.6", "2"]
    assert [rows[4]["state"], rows[4]["reason"]] == ["failed", "its worker died"]


NULLS = {
    "model.centre_crop": {"choice": [None, 64]},
    "finetune.depth": {"choice": [1, 2]},
    "finetune.schedule": {"choice": [{"name": "constant"}, {"name": "cosine"}]},
}


def test_a_choice_of_nothing_or_a_number_is_drawn_and_shown():
    """Catches pandas' NaN for null and 2.0 for 2, and plots that can't take null or a mapping."""
    section = tune(space={**NULLS, "finetune.schedule": {"choice": [{"name": "constant"}]}})
    shares = {"distributions": distributions(section.space), "state": TrialState.COMPLETE}
    constant = '{"name": "constant"}'
    trials = [
        create_trial(
            params=dict(zip(section.space, (*values, constant), strict=True)), value=score, **shares
        )
        for *values, score in [(None, 2, 0.7), (64, 1, 0.9)]
    ]
    study = optuna.create_study(direction="maximize")
    study.add_trials([*trials, create_trial(state=TrialState.FAIL)])
    assert trials_table(study.trials, section)["model.centre_crop"].tolist() == [None, 64, None]
    best = trial_values(section.space, best_trial(study.trials, objective="val_auroc"))
    assert best["model.centre_crop"] == 64
    assert best["finetune.schedule"]["name"] == "constant"
    assert set(figures(study, section)) == {"History", "Parallel coordinates", "Slices"}
