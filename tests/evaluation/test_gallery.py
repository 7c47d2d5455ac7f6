"""Which patches a person is shown."""

import numpy as np
import pandas as pd
import pytest

from src.evaluation.gallery import SETS, choose_patches, explained_picture

ROWS = pd.DataFrame(
    {
        "id": list("abcdefgh"),
        "label": [1, 1, 1, 1, 0, 0, 0, 0],
        "probability": [0.9, 0.45, 0.3, 0.1, 0.95, 0.5, 0.39, 0.2],
    }
)


@pytest.mark.parametrize(
    ("name", "ids"),
    [
        ("missed", ["d", "c"]),
        ("false_alarm", ["e", "f"]),
        ("near", ["g", "b"]),
        ("loss", ["e", "d"]),
        ("right_tumour", ["a", "b"]),
        ("right_normal", ["h", "g"]),
    ],
)
def test_each_set_by_hand(name, ids):
    """Least confident first, labels swapped, or the threshold taken for 0.5."""
    chosen = choose_patches(ROWS, threshold=0.4, per_set=2)
    of_set = chosen[chosen["set"] == name]
    assert of_set["id"].tolist() == ids
    assert of_set["rank"].tolist() == [1, 2]


def test_sets_are_those_with_a_title():
    assert set(choose_patches(ROWS, threshold=0.4, per_set=1)["set"]) == set(SETS)


def test_row_order_is_irrelevant():
    """Among equal probabilities the first row would win."""
    rows = ROWS.assign(probability=0.5)
    chosen = choose_patches(rows, threshold=0.4, per_set=2)
    other = choose_patches(rows.sample(frac=1, random_state=1), threshold=0.4, per_set=2)
    assert chosen["id"].tolist() == other["id"].tolist()


def test_empty_set_is_left_out():
    """No mistakes is no error."""
    chosen = choose_patches(ROWS[ROWS["label"] == 1], threshold=0.05, per_set=2)
    assert set(chosen["set"]) == {"near", "loss", "right_tumour"}


def test_picture_shows_patch_and_evidence_with_the_centre_drawn():
    """The map over the wrong half, or a square beside the centre."""
    patch = np.full((96, 96, 3), 200, np.uint8)
    evidence = np.zeros((96, 96))
    evidence[80:, 80:] = 1.0
    picture = np.asarray(explained_picture(patch, evidence))
    assert picture.shape == (192, 384, 3)
    assert (picture[:60, :60] == 200).all()
    assert (picture[170:190, 170:190] == 200).all()
    assert np.ptp(picture[180, 192 + 180].astype(int)) > 50
    for left in (0, 192):
        assert (picture[64, left + 66 : left + 126] == 255).all()
        assert (picture[63, left + 66 : left + 126] == 0).all()
        assert (picture[66:126, left + 127] == 255).all()
