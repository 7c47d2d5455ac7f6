"""Where a study is kept, and what it belongs to."""

from __future__ import annotations

import optuna
import pytest
from optuna.trial import TrialState

from src import paths
from src.tuning.space import PRESENT, TuneError
from src.tuning.study import (
    begin_study,
    check_identity,
    locked,
    next_seed,
    open_study,
    reporting,
    storage_url,
    study_identity,
)
from tests.tuning.support import params, tune

pytestmark = pytest.mark.filterwarnings("ignore:Heartbeat of storage:UserWarning")  # ask by hand

DATA = {"content_digest": "a" * 64, "split_sha256": "b" * 64, "patches": "c" * 64}


def test_one_file_is_one_database_however_it_is_named(tmp_path, monkeypatch):
    """Catches two locks for one database: two commands then begin two runs in MLflow."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(paths, "TUNE_DB", tmp_path / "tune.db")
    whole = f"sqlite:///{tmp_path / 'tune.db'}"
    assert storage_url("sqlite:///tune.db") == storage_url(whole) == storage_url(None)
    (tmp_path / "link").symlink_to(tmp_path)
    assert storage_url("sqlite:///link/tune.db") == whole
    with locked(whole):
        assert (tmp_path / "tune.db.lock").exists()


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("sqlite:///:memory:", "must name a file"),
        ("sqlite:///", "must name a file"),
        ("sqlite:///file:x?mode=memory&uri=true", "must name a file"),
        ("sqlite:////nowhere/at/all/tune.db", "there is no folder /nowhere/at/all"),
        ("mysql://me:secret@host/db", "must be sqlite:///FILE or postgresql://"),
    ],
)
def test_what_workers_cannot_share_is_refused(url, said):
    """Catches a database of each worker's own, a folder made by a typo, a password in a message."""
    with pytest.raises(TuneError) as refused:
        storage_url(url)
    assert said in str(refused.value)
    assert "secret" not in str(refused.value)


def test_a_database_that_goes_away_later_is_one_line():
    """Catches Optuna's own error, in the middle of a search, as a page of traceback."""
    with pytest.raises(TuneError) as refused, reporting("postgresql+psycopg://me:pw@host/db"):
        raise optuna.exceptions.StorageInternalError("server closed the connection")
    assert "server closed the connection" in str(refused.value)
    assert "pw" not in str(refused.value)


def test_other_errors_are_not_the_storages():
    """Catches a full disk, or a package that is missing elsewhere, reported as the database's."""
    for error in (OSError("No space left on device"), ModuleNotFoundError(name="plotly")):
        with pytest.raises(type(error)), reporting("sqlite:///x.db"):
            raise error


def test_the_present_setting_is_tried_until_it_is_measured(tmp_path):
    """Catches a gain that can't be measured because the first trial was stopped by hand."""
    url = f"sqlite:///{tmp_path / 'tune.db'}"

    def n_present() -> int:
        trials = begin_study(url, "s", params(), {}).get_trials(deepcopy=False)
        return sum(PRESENT in trial.user_attrs for trial in trials)

    assert n_present() == n_present() == 1
    study = open_study(url, "s", tune())
    study.tell(study.ask(), state=TrialState.FAIL)
    assert n_present() == n_present() == 2


def test_every_command_draws_from_its_own_seed(tmp_path):
    """Catches two commands on one study that try the same settings; studies repeat."""
    seeds = []
    for name in ("a", "b"):
        url = f"sqlite:///{tmp_path / name}.db"
        study = begin_study(url, "s", params(), {})
        seeds.append([next_seed(study, url, tune()), next_seed(study, url, tune())])
    assert seeds[0] == seeds[1]
    assert seeds[0][0] != seeds[0][1]


def _identity(*, data=DATA, code="d" * 64, section=None, **changes):
    changed = params(**changes)
    if section is not None:
        changed = changed.model_copy(update={"tune": section})
    return study_identity(changed, data=data, code=code)


def test_applying_does_not_make_it_another_study():
    """Catches a study that can't go on once its best parameters were applied."""
    best = {"finetune.depth": 2, "finetune.learning_rate": 3.21e-5, "train.learning_rate": 0.0005}
    check_identity("s", _identity(), _identity(**best))


OTHER_DATA = {"data": {**DATA, "patches": "e" * 64}}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (OTHER_DATA, "data.patches"),
        ({"code": "e" * 64}, "code"),
        ({"finetune.epochs": 9}, f"finetune.epochs ({params().finetune.epochs} → 9)"),
    ],
)
def test_a_study_of_other_data_code_or_parameters_is_refused(changes, named):
    """Catches trials that are compared though they can't be."""
    with pytest.raises(TuneError) as refused:
        check_identity("s", _identity(), _identity(**changes))
    assert named in str(refused.value)
    assert "--study NAME" in str(refused.value)


def test_best_parameters_of_other_data_need_a_word():
    """Catches a depth found on other patches in params.yaml; other code alone is no reason."""
    check_identity("s", _identity(), _identity(code="e" * 64), goes_on=False)
    with pytest.raises(TuneError, match="--other-data"):
        check_identity("s", _identity(), _identity(**OTHER_DATA), goes_on=False)
    check_identity("s", _identity(), _identity(**OTHER_DATA), goes_on=False, other_data=True)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"objective": "val_loss"}, "tune.objective (val_auroc → val_loss)"),
        ({"space": {"finetune.depth": {"choice": [0, 1]}}}, "tune.space.finetune.depth"),
    ],
)
@pytest.mark.parametrize("other_data", [False, True])
def test_the_best_by_another_objective_or_space_is_not_applied(changes, named, other_data):
    """Catches the worst trial applied as the best: highest loss, by an objective set afterwards."""
    now = _identity(section=tune(**changes))
    with pytest.raises(TuneError) as refused:
        check_identity("s", _identity(), now, goes_on=False, other_data=other_data)
    assert named in str(refused.value)
