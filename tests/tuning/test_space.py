"""The space: what is drawn is what is trained, and what is refused says why."""

from __future__ import annotations

import optuna
import pytest

from src import paths
from src.params import ParamsError, load_params
from src.tuning import space
from tests.tuning.support import params, tune

SAMPLE = (paths.ROOT / "presets" / "sample.yaml").read_text()
DEPTHS = "{choice: [0, 1, 2, 3]}"
RATES = "{log: [0.000003, 0.001]}"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (DEPTHS, "{choice: [0, 17]}", "tune.space: finetune.depth must be ≤ 16 (got 17)"),
        (DEPTHS, "{pick: [0]}", "must be {choice: [a, b]}, {log: [low, high]} or"),
        (RATES, "{log: [0, 0.1]}", "must be [low, high] with 0 < low < high (got [0.0, 0.1])"),
        (RATES, "{linear: [0.1, 0.1]}", "low < high (got [0.1, 0.1])"),
        ("finetune.depth:", "finetune.dept:", "finetune.dept: is not a known parameter"),
        ("finetune.depth:", "evaluate.seed:", "must be a parameter of model, train or finetune"),
        ("finetune.depth:", "finetune.seed:", "a seed isn't searched"),
        (
            "finetune.depth: {choice: [0, 1, 2, 3]}",
            "finetune.optimizer: {choice: [adam, adamw]}\n"
            "    finetune.weight_decay: {choice: [0.0, 0.01]}",
            "weight_decay must be 0 with optimizer adam",
        ),
        (
            "finetune.depth: {choice: [0, 1, 2, 3]}",
            "finetune.augment.stain: {linear: [0.01, 0.1]}",
            "finetune.augment is None and has no stain",
        ),
    ],
)
def test_a_space_that_params_would_refuse_is_refused_before_the_study(tmp_path, old, new, message):
    """Catches an hour of search that ends at a value, or a pair of values, that isn't allowed."""
    head, tail = SAMPLE.split("\ntune:", 1)
    assert old in tail
    file = tmp_path / "params.yaml"
    file.write_text(f"{head}\ntune:{tail.replace(old, new, 1)}")
    with pytest.raises(ParamsError) as refused:
        load_params(file)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_every_kind_is_drawn_as_what_it_is():
    """Catches mappings as text, whole numbers as floats, and ranges that are left."""
    section = tune(
        space={
            "finetune.schedule": {
                "choice": [
                    {"name": "constant"},
                    {"name": "cosine", "warmup_epochs": 1, "final_fraction": 0.1},
                ]
            },
            "finetune.depth": {"linear": [1, 3]},
            "model.dropout": {"linear": [0.0, 0.5]},
            "finetune.learning_rate": {"log": [1e-5, 1e-3]},
        }
    )
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    for _ in range(30):
        values = space.draw(study.ask(), section.space)
        assert values["finetune.schedule"]["name"] in ("constant", "cosine")
        assert type(values["finetune.depth"]) is int
        assert 1e-5 <= values["finetune.learning_rate"] <= 1e-3
        assert 0 <= values["model.dropout"] <= 0.5
        params(**values)


def test_numbers_have_three_digits_and_stay_inside():
    """Catches a best.yaml that rounds what was trained with other digits, or leaves the range."""
    section = tune(space={"finetune.learning_rate": {"log": [1.2346e-5, 1e-3]}})
    drawn = {"finetune.learning_rate": 3.14159e-4}
    assert space.values_of(section.space, drawn) == {"finetune.learning_rate": 3.14e-4}
    low = {"finetune.learning_rate": 1.2346e-5}
    assert space.values_of(section.space, low) == low


def _present(dimensions: dict, **values):
    section = tune(space=dimensions)
    return space.present_as_drawn(params(**values).model_copy(update={"tune": section}))


def test_present_parameters_are_enqueued_only_from_inside():
    """Catches a first trial that the space doesn't hold, on both sides of a bound."""
    dimensions = {"finetune.depth": {"choice": [0, 3]}, "model.dropout": {"linear": [0.1, 0.2]}}
    inside = {"finetune.depth": 3, "model.dropout": 0.2}
    assert _present(dimensions, **inside) == inside
    assert _present(dimensions, **{**inside, "model.dropout": 0.21}) is None
    assert _present(dimensions, **{**inside, "finetune.depth": 1}) is None


def test_the_present_schedule_is_known_however_its_numbers_are_written():
    """Catches a present setting that is never tried because 1 isn't 1.0 as text."""
    choices = [{"name": "constant"}, {"name": "cosine", "warmup_epochs": 1, "final_fraction": 0}]
    present = {"name": "cosine", "warmup_epochs": 1.0, "final_fraction": 0.0}
    drawn = _present({"finetune.schedule": {"choice": choices}}, **{"finetune.schedule": present})
    study = optuna.create_study()
    study.enqueue_trial(drawn)
    section = tune(space={"finetune.schedule": {"choice": choices}})
    assert space.draw(study.ask(), section.space)["finetune.schedule"] == choices[1]


def test_the_present_numbers_keep_every_digit():
    """Catches a first trial that isn't the present setting but one rounded to three digits."""
    section = tune(space={"finetune.learning_rate": {"log": [1e-5, 1e-3]}})
    exact = {"finetune.learning_rate": 2.1234e-5}
    study = optuna.create_study()
    study.enqueue_trial(exact, user_attrs={space.PRESENT: True})
    assert space.draw(study.ask(), section.space) == exact
    (trial,) = study.get_trials(deepcopy=False)
    assert space.trial_values(section.space, trial) == exact


@pytest.mark.parametrize(
    ("dimension", "expected"),
    [({"choice": [0, 3, 1]}, [0, 3, 1]), ({"linear": [1, 4]}, [1, 2, 3, 4]), (None, [3])],
    ids=str,
)
def test_the_depths_that_trials_may_have(dimension, expected):
    """Catches depths whose frozen layers are computed once more for each."""
    searched = {"finetune.depth": dimension} if dimension else {}
    rate = {"finetune.learning_rate": {"log": [1e-5, 1e-3]}}
    assert space.depths(params().model_copy(update={"tune": tune(space=rate | searched)})) == (
        expected
    )
