"""The table of trials, its pictures and its page, from trials made by hand."""

import io
import logging

import optuna
import pytest
from optuna.trial import TrialState, create_trial
from rich.console import Console

from src.system.durable import verify_folder
from src.system.log import get_logger
from src.tuning.confirming import compare
from src.tuning.interactive import page
from src.tuning.live import Watch
from src.tuning.pictures import of_study
from src.tuning.report import importances_of, write_report
from src.tuning.space import distributions, trial_values
from src.tuning.table import best_row, best_so_far, best_trial, trials_table
from tests.tuning.support import params, tune


def _trial(state=TrialState.COMPLETE, value=None, depth=1, rate=1e-4, reported=None):
    section = tune()
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
        distributions=distributions(section.space),
        intermediate_values=reported or {},
    )


@pytest.fixture
def study():
    study = optuna.create_study(direction="maximize")
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


def test_the_best_is_a_complete_trial_by_the_objective(study):
    """Catches the lowest AUROC or highest loss as best, and pruned trials among them."""
    table = trials_table(study.trials, tune())
    best = best_row(table, objective="val_auroc")
    assert best["trial"] == 1
    found = best_trial(study.trials, objective="val_auroc")
    assert found.number == 1
    assert trial_values(tune().space, found)["finetune.learning_rate"] == 2e-5
    assert best_row(table, objective="val_loss")["trial"] == 5
    assert best_trial(study.trials, objective="val_loss").number == 5
    assert best_row(table[table["state"] == "pruned"], objective="val_auroc") is None
    assert best_so_far(table, objective="val_auroc").tolist() == [0.7, 0.9, 0.9, 0.9, 0.9, 0.9]
    assert table["value"].tolist()[2] == 0.6


def test_the_page_needs_no_network(study):
    """Catches a script that is loaded from elsewhere, and one copy of it a picture."""
    html = page(trials_table(study.trials, tune()), tune(), importances_of(study), study="<s>")
    assert "<script src=" not in html
    assert html.count("plotly.js v") == 1
    assert "&lt;s&gt;" in html


def test_a_study_without_a_complete_trial_has_no_pictures():
    """Catches a traceback from a plot of nothing."""
    table = trials_table([_trial(state=TrialState.FAIL)], tune())
    assert of_study(table, tune(), {}) == {}
    assert "nothing to show" in page(table, tune(), {}, study="s")


def test_the_folder_holds_every_file(study, tmp_path, monkeypatch):
    """Catches a picture that is drawn and not written."""
    monkeypatch.setattr("src.paths.CACHE", tmp_path / "cache")
    table = trials_table(study.trials, tune())
    write_report(
        table,
        tune(),
        study="s",
        best=trial_values(tune().space, best_trial(study.trials, objective="val_auroc")),
        importances=importances_of(study),
        confirmation=None,
        folder=tmp_path / "tune",
    )
    pictures = {"history", "slices", "parallel_coordinates", "importances", "depth_rate_map"}
    files = {"trials.csv", "best.yaml", "index.html", *(f"{name}.png" for name in pictures)}
    assert set(verify_folder(tmp_path / "tune")) == files
    assert "depth: 2" in (tmp_path / "tune" / "best.yaml").read_text()


def _six_trials():
    return params().model_copy(update={"tune": tune(n_trials=6)})


NULLS = {
    "model.centre_crop": {"choice": [None, 64]},
    "finetune.depth": {"choice": [1, 2]},
    "finetune.batch_norm": {"choice": ["frozen", "train"]},
}


def test_a_choice_of_nothing_or_a_number_is_drawn_and_shown():
    """Catches pandas' NaN for null and 2.0 for 2, where a trial has no values: hours are lost."""
    section = tune(space=NULLS)
    shares = {"distributions": distributions(section.space), "state": TrialState.COMPLETE}
    names = list(NULLS)
    trials = [
        create_trial(params=dict(zip(names, values, strict=True)), value=value, **shares)
        for *values, value in [(None, 2, "train", 0.7), (64, 1, "frozen", 0.9)]
    ]
    study = optuna.create_study(direction="maximize")
    study.add_trials([*trials, create_trial(state=TrialState.FAIL)])
    table = trials_table(study.trials, section)
    assert table["model.centre_crop"].tolist() == [None, 64, None]
    best = best_row(table, objective="val_auroc")
    assert [(type(best[n]), best[n]) for n in names[:2]] == [(int, 64), (int, 1)]
    assert set(of_study(table, section, {})) == {"history", "slices", "parallel_coordinates"}
    assert "History" in page(table, section, {}, study="s")


def test_the_live_table_says_how_the_study_stands(study):
    """Catches a table that crashes on a trial in any state, and a best that is a pruned one."""
    searched = _six_trials()
    watch = Watch(searched, get_logger("tune"))
    console = Console(width=160, file=io.StringIO())
    study.enqueue_trial({"finetune.depth": 1})
    console.print(watch.table(study.get_trials(deepcopy=False)))
    shown = console.file.getvalue()
    epochs = f"2/{searched.tune.epochs}"
    for text in ("0.9000", "complete (best)", "pruned", "retried", "waiting", "2e-05", epochs):
        assert text in shown
    assert "5 of 6 trials, best 0.9000 (trial 1)" in shown


def test_lines_are_said_once_a_change(study):
    """Catches a log that repeats itself twice a second."""
    told: list[str] = []
    log = logging.Logger("told")
    log.addFilter(lambda record: told.append(record.getMessage()))
    watch = Watch(_six_trials(), log)
    watch.look(study.get_trials(deepcopy=False))
    watch.look(study.get_trials(deepcopy=False))
    assert len([line for line in told if line.startswith("trial 1 complete")]) == 1


@pytest.mark.parametrize(("objective", "sign"), [("val_auroc", 1), ("val_loss", -1)])
def test_the_gain_is_paired_and_has_students_interval(objective, sign):
    """Catches unpaired differences (here each is exactly 0.1, 0.2, 0.3), and a loss that gains by
    growing."""
    present = [0.5, 0.6, 0.4]
    best = [0.5 + sign * 0.1, 0.6 + sign * 0.2, 0.4 + sign * 0.3]
    found = compare([1, 2, 3], present, best, objective=objective)
    assert found.gain == pytest.approx(0.2)
    # 4.3027 is Student's 97.5 % point for 2 degrees; 0.1 / sqrt(3) the standard error
    assert found.high - found.gain == pytest.approx(4.3027 * 0.1 / 3**0.5, rel=1e-4)
