"""What the command says and refuses, without training."""

import csv
from contextlib import contextmanager

import pytest
from optuna.trial import TrialState

from src import paths
from src.params import load_params
from src.system.errors import ProjectError
from src.system.log import get_logger
from src.tracking import tuning_runs
from src.tracking.store import TrackingError
from src.tuning import budget, command, space
from src.tuning.closing import NothingFound, best_of, nothing_found
from src.tuning.command import Options, _next_command, check_options
from src.tuning.confirming import Comparison, kept_score, seeds_after
from src.tuning.study import load_study
from tests.tuning.support import params, tune

pytestmark = pytest.mark.filterwarnings("ignore:Heartbeat of storage:UserWarning")  # ask by hand


@pytest.mark.parametrize("name", ["a/b", "{x}", "", ".hidden", "x" * 101, "a b"])
def test_a_name_that_is_no_file_name_is_refused(name):
    """Catches a study whose logs lie elsewhere, or a KeyError from its braces."""
    with pytest.raises(ProjectError, match="--study must be"):
        check_options(Options(study=name))
    check_options(Options(study="deeper-2.0_b"))


@pytest.mark.parametrize("others", [{}, {"apply": True, "confirm": True}])
def test_other_data_goes_with_apply_alone(others):
    """Catches a confirmation on other data than was searched."""
    with pytest.raises(ProjectError, match="--other-data goes with --apply"):
        check_options(Options(other_data=True, **others))


@pytest.fixture
def study(tmp_path):
    return load_study(f"sqlite:///{tmp_path / 'tune.db'}", "s", tune())


def _small(n_trials: int):
    return params().model_copy(update={"tune": tune(n_trials=n_trials)})


@pytest.mark.parametrize(
    ("n_trials", "options", "flag"),
    [
        (2, Options(), ""),
        (2, Options(trials=2), " --trials 2"),  # params.yaml may ask for more
        (5, Options(timeout_min=1.0), " --trials 2"),
        (2, Options(study="s", storage="sqlite:///x.db"), " --study s --storage URL"),
    ],
)
def test_the_command_to_use_next_searches_no_further(study, n_trials, options, flag):
    """Catches advice that starts an hour of trials where a person wanted the best so far."""
    for _ in range(2):
        study.tell(study.ask(), 0.5)
    where = flag.partition(" --trials")
    said = _next_command(study, _small(n_trials), options)
    assert said == f"python -m src.tune{where[0]}{where[1]}{where[2]} --apply"


def test_nothing_found_says_what_helps(study):
    """Catches advice to narrow a space that just had no time."""
    assert best_of(study, _small(1)) is None
    assert "the same command goes on" in str(nothing_found(study, _small(1)))
    study.tell(study.ask(), state=TrialState.PRUNED)
    error = nothing_found(study, _small(1))
    assert "1 pruned" in str(error)
    assert "narrow tune.space" in str(error)


def test_the_seed_that_chose_the_best_does_not_confirm_it():
    """Catches a gain that is flattered by the seed it was chosen with."""
    assert seeds_after(1) == [2, 3, 4]


def test_a_training_is_not_repeated_after_a_kill(tmp_path, monkeypatch):
    """Catches six trainings lost because the last was killed."""
    monkeypatch.setattr("src.paths.TUNE_CONFIRMED", tmp_path)
    assert kept_score("a", lambda: 0.75) == 0.75
    assert kept_score("a", lambda: pytest.fail("trained again")) == 0.75
    assert kept_score("b", lambda: 0.5) == 0.5


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project in which a search costs nothing: ``_work`` is the test's, MLflow takes anything."""
    preset = (paths.ROOT / "presets" / "sample.yaml").read_text()
    (tmp_path / "params.yaml").write_text(preset)
    for name, place in (("ROOT", ""), ("CACHE", ".cache"), ("TUNE_REPORT", "reports/tune")):
        monkeypatch.setattr(paths, name, tmp_path / place)
    monkeypatch.setattr(paths, "PARAMS", tmp_path / "params.yaml")
    monkeypatch.setattr(paths, "TUNE_DB", tmp_path / "tune.db")
    monkeypatch.setattr(command, "_identity", lambda _: {"data.content_digest": "d"})

    @contextmanager
    def study_run(*_, **__):
        yield "run"

    monkeypatch.setattr(tuning_runs, "study_run", study_run)
    monkeypatch.setattr(tuning_runs, "log_study", lambda *_, **__: None)
    return tmp_path


def _tune(monkeypatch, end, *, n_trials: int = 2, **options) -> None:
    """Run the command; ``end`` ends each trial."""

    def work(study, job, *_):
        for _ in range(job.n_trials):
            trial = study.ask()
            space.draw(trial, job.params.tune.space)
            end(study, trial)

    monkeypatch.setattr(command, "_work", work)
    loaded = load_params(paths.PARAMS)
    section = loaded.tune.model_copy(update={"n_trials": n_trials})
    command.tune(
        loaded.model_copy(update={"tune": section}), Options(**options), get_logger("tune")
    )


def _prune(study, trial):
    study.tell(trial, state=TrialState.PRUNED)


def _fail(study, trial):
    trial.set_user_attr(budget.REASON, "loss is nan in epoch 1")
    study.tell(trial, state=TrialState.FAIL)


def _complete(study, trial):
    study.tell(trial, 0.5 + trial.number / 10)


@pytest.mark.parametrize(("end", "said"), [(_prune, "2 pruned"), (_fail, "2 failed.*loss is nan")])
def test_a_study_without_a_best_says_so_and_leaves_its_table(project, monkeypatch, end, said):
    """Catches a traceback, and a search that leaves no trace of what it tried."""
    with pytest.raises(NothingFound, match=said):
        _tune(monkeypatch, end)
    table = (project / "reports/tune/trials.csv").read_text()
    rows = list(csv.DictReader(table.splitlines()))
    assert [row["state"] for row in rows] == [said.split()[1].split(".")[0]] * 2


def test_a_confirmation_that_fails_costs_no_report(project, monkeypatch):
    """Catches a search of hours whose result is lost with a worker of the confirmation."""

    def confirmed(*_):
        raise ProjectError("the confirmation died")

    monkeypatch.setattr(command, "_confirmed", confirmed)
    with pytest.raises(ProjectError, match="the confirmation died"):
        _tune(monkeypatch, _complete, confirm=True)
    assert (project / "reports/tune/best.yaml").exists()


@pytest.mark.usefixtures("project")
def test_a_best_that_is_the_present_needs_no_confirmation(monkeypatch, caplog):
    """Catches six trainings of one setting."""
    caplog.set_level("INFO")
    monkeypatch.setattr("src.tuning.confirming.confirm", lambda *_: pytest.fail("trains"))
    _tune(monkeypatch, _complete, n_trials=1, confirm=True)
    assert "the best setting is the present one" in caplog.text


@pytest.mark.parametrize("gain", [-0.01, 0.0, 0.01])
def test_what_is_confirmed_to_be_no_better_is_not_applied(project, monkeypatch, gain):
    """Catches params.yaml made worse by a search whose own confirmation says so (both sides)."""
    found = Comparison([2], [0.5], [0.5 + gain], gain, gain - 0.1, gain + 0.1)
    monkeypatch.setattr(command, "_confirmed", lambda *_: found)
    before = (project / "params.yaml").read_text()
    _tune(monkeypatch, _complete, confirm=True, apply=True)
    assert ((project / "params.yaml").read_text() != before) == (gain > 0)


def test_a_store_that_fails_at_the_end_costs_no_apply(project, monkeypatch):
    """Catches best parameters that are found and not applied; the second time only applies."""

    def log_study(*_, **__):
        raise TrackingError("the server is gone")

    monkeypatch.setattr(tuning_runs, "log_study", log_study)
    before = (project / "params.yaml").read_text()
    _tune(monkeypatch, _complete, apply=True)
    after = (project / "params.yaml").read_text()
    assert after != before
    (project / "params.yaml").write_text(before)
    _tune(monkeypatch, lambda *_: pytest.fail("searched again"), apply=True)
    assert (project / "params.yaml").read_text() == after
