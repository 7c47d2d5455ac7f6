"""--apply: the values arrive, and all else of params.yaml stays."""

import pytest

from src import paths
from src.params import ParamsError, load_params
from src.tuning.applying import apply
from src.tuning.identity import OtherStudy, check_applicable, check_same, study_identity
from src.tuning.study import plain
from tests.tuning.support import params, tune

BEST = {"finetune.depth": 2, "finetune.learning_rate": 3.21e-5, "train.learning_rate": 0.0005}
DATA = {"content_digest": "a" * 64, "split_sha256": "b" * 64, "patches": "c" * 64}


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


def test_mappings_are_applied_too(file):
    """Catches a schedule written as text."""
    apply(file, {"finetune.schedule": {"name": "constant"}})
    assert load_params(file).finetune.schedule.name == "constant"


def test_what_is_not_allowed_leaves_the_file(file):
    """Catches a params.yaml that no command can read any more."""
    before = file.read_bytes()
    with pytest.raises(ParamsError, match="must be ≤ 16"):
        apply(file, {"finetune.depth": 17})
    assert file.read_bytes() == before
    assert [path.name for path in file.parent.iterdir()] == ["params.yaml"]


def test_applying_does_not_make_it_another_study():
    """Catches a study that can't go on once its best parameters were applied."""
    before = study_identity(params(), data=DATA, code="d" * 64)
    after = study_identity(params(**BEST), data=DATA, code="d" * 64)
    check_same("s", plain(before), plain(after))


@pytest.mark.parametrize(
    ("data", "code", "changes", "named"),
    [
        ({**DATA, "patches": "e" * 64}, "d" * 64, {}, "data.patches"),
        (DATA, "e" * 64, {}, "code"),
        (DATA, "d" * 64, {"finetune.epochs": 9}, "finetune.epochs (16 → 9)"),
    ],
)
def test_a_study_of_other_data_code_or_parameters_is_refused(data, code, changes, named):
    """Catches trials that are compared though they can't be."""
    then = plain(study_identity(params(), data=DATA, code="d" * 64))
    now = plain(study_identity(params(**changes), data=data, code=code))
    with pytest.raises(OtherStudy) as refused:
        check_same("s", then, now)
    assert named in str(refused.value)
    assert "--study NAME" in str(refused.value)


def test_best_parameters_of_other_data_need_a_word():
    """Catches a depth found on other patches in params.yaml; other code alone is no reason."""
    then = plain(study_identity(params(), data=DATA, code="d" * 64))
    code = plain(study_identity(params(), data=DATA, code="e" * 64))
    check_applicable("s", then, code)
    data = plain(study_identity(params(), data={**DATA, "patches": "f" * 64}, code="d" * 64))
    with pytest.raises(OtherStudy, match="--other-data"):
        check_applicable("s", then, data)
    check_applicable("s", then, data, other_data=True)


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
    then = plain(study_identity(params(), data=DATA, code="d" * 64))
    changed = params().model_copy(update={"tune": tune(**changes)})
    now = plain(study_identity(changed, data=DATA, code="d" * 64))
    with pytest.raises(OtherStudy) as refused:
        check_applicable("s", then, now, other_data=other_data)
    assert named in str(refused.value)


def test_a_mapping_is_compared_as_params_reads_it(file):
    """Catches a schedule that can't be applied because 1 is read as 1.0."""
    apply(file, {"finetune.schedule": {"name": "cosine", "warmup_epochs": 1, "final_fraction": 0}})
    assert load_params(file).finetune.schedule.warmup_epochs == 1.0


def test_errors_name_the_file_a_person_knows(file):
    """Catches .params.yaml.3f….tmp in a message, and a traceback for a value without parts."""
    with pytest.raises(ParamsError, match=r"give finetune\.augment its values") as refused:
        apply(file, {"finetune.augment.stain": 0.1})
    assert ".tmp" not in str(refused.value)
    file.write_text(file.read_text().replace("n_trials: 12", "n_trials: none"))
    with pytest.raises(ParamsError, match=r"^params\.yaml: tune\.n_trials"):
        apply(file, BEST)
