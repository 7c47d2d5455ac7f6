"""The best setting: its gain over the present one, and its way into params.yaml."""

from __future__ import annotations

from types import SimpleNamespace

import optuna
import pytest
from optuna.trial import TrialState

from src import paths
from src.params import ParamsError, load_params
from src.system.log import get_logger
from src.tuning import best as best_setting
from src.tuning.best import Best, apply, best_of, compare, confirm
from src.tuning.space import TuneError
from src.tuning.study import REASON
from tests.tuning.support import params, tune

pytestmark = pytest.mark.tensorflow

BEST = {"finetune.depth": 2, "finetune.learning_rate": 3.21e-5, "train.learning_rate": 0.0005}


@pytest.fixture
def file(tmp_path):
    copy = tmp_path / "params.yaml"
    copy.write_text((paths.ROOT / "params.yaml").read_text())
    return copy


def test_only_the_lines_of_the_values_change(file):
    """Catches lost comments, another order, and flow style that is unfolded."""
    before = file.read_text().splitlines()
    shown = apply(file, BEST)
    after = file.read_text().splitlines()
    changed = [(old, new) for old, new in zip(before, after, strict=True) if old != new]
    assert len(changed) == 2  # the head's rate is the present one
    assert all(new in shown for _, new in changed)
    assert changed[0][1].strip().startswith("depth: 2 ")
    assert "# residual blocks unfrozen" in changed[0][1]
    assert load_params(file).finetune.learning_rate == 3.21e-5
    assert apply(file, BEST) == ""


def test_a_mapping_is_compared_as_params_reads_it(file):
    """Catches a schedule written as text, or that can't be applied because 1 is read as 1.0."""
    apply(file, {"finetune.schedule": {"name": "cosine", "warmup_epochs": 1, "final_fraction": 0}})
    assert load_params(file).finetune.schedule.warmup_epochs == 1.0


def test_what_is_not_allowed_leaves_the_file(file):
    """Catches a params.yaml that no command can read any more."""
    before = file.read_bytes()
    with pytest.raises(ParamsError, match="must be ≤ 16"):
        apply(file, {"finetune.depth": 17})
    assert file.read_bytes() == before
    assert [path.name for path in file.parent.iterdir()] == ["params.yaml"]


def test_errors_name_the_file_a_person_knows(file):
    """Catches .params.yaml.3f….tmp in a message, and a traceback for a value without parts."""
    with pytest.raises(ParamsError, match=r"give finetune\.augment its values") as refused:
        apply(file, {"finetune.augment.stain": 0.1})
    assert ".tmp" not in str(refused.value)
    file.write_text(file.read_text().replace("n_trials: 12", "n_trials: none"))
    with pytest.raises(ParamsError, match=r"^params\.yaml: tune\.n_trials"):
        apply(file, BEST)


def test_nothing_found_says_what_helps():
    """Catches advice to narrow a space that just had no time, and a reason that is lost."""
    study = optuna.create_study(direction="maximize")
    small = params().model_copy(update={"tune": tune(n_trials=1)})
    with pytest.raises(TuneError, match=r"none began.*the same command goes on"):
        best_of(study, small)
    trial = study.ask()
    trial.set_user_attr(REASON, "loss is nan")
    study.tell(trial, state=TrialState.FAIL)
    with pytest.raises(TuneError, match=r"1 failed.*loss is nan.*narrow tune.space"):
        best_of(study, small)


@pytest.mark.parametrize(("objective", "sign"), [("val_auroc", 1), ("val_loss", -1)])
def test_the_gain_is_paired_and_has_students_interval(objective, sign):
    """Catches unpaired differences (here 0.1, 0.2, 0.3), and a loss that gains by growing."""
    present = [0.5, 0.6, 0.4]
    best = [0.5 + sign * 0.1, 0.6 + sign * 0.2, 0.4 + sign * 0.3]
    found = compare([1, 2, 3], present, best, objective=objective)
    assert found.gain == pytest.approx(0.2)
    # 4.3027 is Student's 97.5 % point for 2 degrees; 0.1 / sqrt(3) the standard error
    assert found.high - found.gain == pytest.approx(4.3027 * 0.1 / 3**0.5, rel=1e-4)


@pytest.fixture
def trained(monkeypatch):
    """Stands in for training: the seeds and depths that were trained, in order."""
    seen: list[tuple[int, int]] = []

    def run_trial(setting, _):
        seen.append((setting.finetune.seed, setting.finetune.depth))
        score = 0.5 + setting.finetune.depth / 100
        return None, {"best_epoch": 1, "history": [{"val_auroc": score}]}

    monkeypatch.setattr(best_setting, "run_trial", run_trial)
    monkeypatch.setattr(best_setting, "load_data", lambda **_: None)
    return seen


def _confirm(study, settings):
    return confirm(study, params(), Best(SimpleNamespace(), settings), {}, get_logger("tune"))


def test_the_gain_is_confirmed_with_other_seeds_and_trained_once(trained):
    """Catches a gain flattered by the seed that chose it, and trainings repeated after a kill."""
    study = optuna.create_study()
    found = _confirm(study, {"finetune.depth": 2})
    assert trained == [(seed, depth) for seed in (2, 3, 4) for depth in (3, 2)]
    assert found.seeds == [2, 3, 4]
    assert found.gain == pytest.approx(-0.01)
    assert _confirm(study, {"finetune.depth": 2}) == found
    assert len(trained) == 6


def test_a_best_that_is_the_present_needs_no_confirmation(trained):
    """Catches six trainings of one setting."""
    assert _confirm(optuna.create_study(), {"finetune.depth": 3}) is None
    assert trained == []
