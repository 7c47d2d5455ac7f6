"""Charts: places on paper, and what is undefined."""

import re

import numpy as np
import pytest

from src.evaluation.svg import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Chart


def _chart(y=(0.0, 1.0), **changes):
    return Chart((0.0, 1.0), y, "x", "y", "a picture", **changes)


def test_corners_of_the_axes():
    """y drawn downwards."""
    chart = _chart()
    chart.line([0, 1], [0, 1], "model")
    bottom_left, top_right = f"{LEFT}.0,{HEIGHT - BOTTOM}.0", f"{WIDTH - RIGHT}.0,{TOP}.0"
    assert f'points="{bottom_left} {top_right}"' in chart.render()


def test_undefined_interrupts_a_line_and_is_left_out_of_a_band():
    """NaN in an attribute: the browser drops the whole line."""
    chart = _chart()
    chart.line([0, 0.2, 0.4, 0.6], [0.1, 0.2, np.nan, 0.3], "model")
    chart.band([0, 0.5, 1], [0.1, np.nan, 0.2], [0.3, 0.4, 0.5], "model")
    chart.bars([0, 1], [0.1, np.nan], [0.2, np.nan], "model")
    drawn = chart.render()
    assert "nan" not in drawn
    assert drawn.count("<polyline") == 2


@pytest.mark.parametrize(
    ("edges", "ticks"),
    [((0.0, 1.0), [0, 0.2, 0.4, 0.6, 0.8, 1]), ((0.453, 0.481), [0.46, 0.47, 0.48])],
)
def test_ticks_are_round_numbers_inside(edges, ticks):
    drawn = _chart(edges).render()
    told = [float(t) for t in re.findall(r'text-anchor="end">([^<]*)<', drawn)]
    assert told == ticks
    assert "-0<" not in drawn


def test_logarithmic_axis_has_ticks_within_a_decade():
    """A learning rate from 1e-5 to 2e-5 with no number beside it."""
    drawn = _chart((6e-6, 3.2e-5), log_y=True).render()
    assert re.findall(r'text-anchor="end">([^<]*)<', drawn) == ["1e-05", "2e-05"]


def test_words_are_escaped():
    assert "<b>" not in Chart((0, 1), (0, 1), "<b>", "y", "<b>").render()
