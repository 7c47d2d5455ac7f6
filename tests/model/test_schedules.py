"""Learning-rate schedules: numbers by hand, and a contract for every entry."""

import math
from typing import get_args

import pytest

from src import params
from src.model.schedules import SCHEDULES, make_schedule

SPECS = {
    "constant": params.ConstantSchedule(name="constant"),
    "cosine": params.CosineSchedule(name="cosine", warmup_epochs=1, final_fraction=0.1),
    "one_cycle": params.OneCycleSchedule(
        name="one_cycle", warmup_fraction=0.25, start_divisor=10, final_divisor=1000
    ),
    "plateau": params.PlateauSchedule(name="plateau", factor=0.5, patience=2, min_rate=0.2),
}


def _schedule(name, *, epochs=3):
    return make_schedule(SPECS[name], peak=1.0, steps_per_epoch=4, epochs=epochs)


@pytest.mark.parametrize("name", SCHEDULES)
def test_contract(name):
    """Every schedule stays in (0, peak], and goes on from its state as if never interrupted."""
    whole, resumed = _schedule(name), _schedule(name)
    losses = [0.5, 0.6, 0.7]
    for epoch, loss in enumerate(losses):
        rates = [whole.rate(epoch * 4 + step) for step in range(4)]
        assert all(0 < rate <= 1.0 for rate in rates)
        assert rates == [resumed.rate(epoch * 4 + step) for step in range(4)]
        whole.after_epoch(loss)
        resumed.after_epoch(loss)
        state, resumed = resumed.state(), _schedule(name)
        resumed.restore(state)


def test_every_schedule_of_params_has_an_entry():
    """Catches a schedule that params.yaml accepts and training doesn't know."""
    specs, _discriminator = get_args(params.Schedule)
    kinds = [spec.model_fields["name"].annotation for spec in get_args(specs)]
    names = {name for kind in kinds for name in get_args(kind)}
    assert set(SCHEDULES) == set(SPECS) == names


def test_cosine_by_hand():
    """Catches an off-by-one at the warm-up's end and at the last step."""
    schedule = _schedule("cosine")
    rates = [schedule.rate(step) for step in range(12)]
    assert rates[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
    assert rates[11] == pytest.approx(0.1)
    half = schedule.rate(4) * 0.5 * (1 + math.cos(math.pi * 4 / 7)) * 0.9 + 0.1
    assert rates[8] == pytest.approx(half)


def test_one_cycle_by_hand():
    """Catches a peak that is missed, and ends that are off by one step."""
    schedule = _schedule("one_cycle")  # 12 steps; 0.25 of the 11 between first and last: rises 3
    rates = [schedule.rate(step) for step in range(12)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[1] == pytest.approx(0.1 + 0.9 * 0.25)  # (1 - cos 60°) / 2
    assert rates[3] == pytest.approx(1.0)
    assert rates[7] == pytest.approx(0.001 + 0.999 * 0.5)
    assert rates[11] == pytest.approx(0.001)
    assert rates[3:] == sorted(rates[3:], reverse=True)


def test_one_cycle_of_a_single_step():
    """Catches a division by zero in the shortest phase."""
    schedule = make_schedule(SPECS["one_cycle"], peak=1.0, steps_per_epoch=1, epochs=1)
    assert schedule.rate(0) == pytest.approx(1.0)


def test_plateau_waits_for_its_patience():
    """Catches a rate that falls one epoch early or late, or below its floor."""
    schedule = _schedule("plateau", epochs=9)
    rates = []
    for loss in [0.9, 0.8, 0.8, 0.85, 0.9, 0.9, 0.9, 0.9]:
        schedule.after_epoch(loss)
        rates.append(schedule.rate(0))
    assert rates == pytest.approx([1, 1, 1, 0.5, 0.5, 0.25, 0.25, 0.2])


def test_a_floor_above_the_rate_does_not_raise_it():
    """Catches a rate that goes up when val loss stalls: fine-tuning at 1e-7, min_rate 1e-6."""
    schedule = make_schedule(SPECS["plateau"], peak=0.1, steps_per_epoch=4, epochs=3)
    for loss in (0.9, 0.9, 0.9):
        schedule.after_epoch(loss)
    assert schedule.rate(0) == 0.1
