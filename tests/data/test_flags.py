"""Blank and duplicate patches, on both sides of each boundary."""

import numpy as np
import pytest

from src.data.flags import blank_flag, duplicate_flags, join_flags


@pytest.mark.parametrize(
    ("mean", "std", "flag"),
    [
        ((255, 255, 255), (0, 0, 0), "blank_white"),
        ((200, 200, 200), (5.9, 5.9, 5.9), "blank_white"),
        ((200, 200, 199), (0, 0, 0), ""),  # a colour, not glass
        ((230, 230, 230), (0, 6.0, 0), ""),  # something varies in one channel
        ((0, 0, 0), (0, 0, 0), "blank_black"),
        ((60, 60, 60), (5.9, 0, 0), "blank_black"),
        ((60, 61, 60), (0, 0, 0), ""),
    ],
)
def test_blank_flag(mean: tuple[int, ...], std: tuple[float, ...], flag: str) -> None:
    assert blank_flag(np.array(mean, float), np.array(std, float)) == flag


def test_every_copy_names_the_first() -> None:
    """Catches chains of copies of copies, and unread patches taken for each other's copy."""
    flags = duplicate_flags(["a", "b", "c", "d", "e", "f"], ["x", "y", "x", "x", "", ""])
    assert flags == ["", "", "duplicate_of:a", "duplicate_of:a", "", ""]


def test_flags_are_joined_without_gaps() -> None:
    assert join_flags(["blank_white", "", "duplicate_of:a"]) == "blank_white,duplicate_of:a"
    assert join_flags(["", ""]) == ""
