"""The pictures of explore, each drawn of small packed patches: they render, and say what is so."""

from __future__ import annotations

import io

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from src.exploration import pictures
from src.exploration.style import counted, draw_centre
from src.params import ExploreParams
from src.patch import CENTRE, CLASS_COLOURS
from src.system.durable import write_json, write_manifest
from tests.exploration.store import SPLIT, rewrite, surveyed, write_data

PARAMS = ExploreParams(seed=1, patches_per_class=4)
NEAR = [None, None, 0b1110, 0b0110, *[None] * 11]


def by_stain(folder):
    """Groups are stain clusters, slides unknown, two patches identical."""
    write_data(folder, slides=False, duplicate=True)
    write_json(folder / "split" / "split.json", SPLIT | {"group_by": "stain"})
    write_manifest(folder / "split")


def near(folder):
    """Patches 2 and 3 are near-duplicates; slides are many and some unknown."""
    train, table = write_data(folder, n=12, phash=NEAR)
    table[[column for column in table.columns if column.startswith("od_")]] = np.float32(0.25)
    table.loc[table.index[:12], "slide"] = [
        None,
        *(f"a very long name of slide {i}" for i in range(11)),
    ]
    rewrite(folder, table, train)


DATA = {"by slide": write_data, "by stain": by_stain, "near-duplicates": near}


@pytest.fixture(scope="module", params=DATA)
def drawn(request, tmp_path_factory):
    """Every picture of one of the data sets, by file name."""
    folder = tmp_path_factory.mktemp("data")
    DATA[request.param](folder)
    return dict(pictures.draw_pictures(*surveyed(folder), PARAMS))


def test_pictures_render_and_titles_fit(drawn):
    """Warnings are errors: a missing glyph or a layout that collapses fails here, as does a title,
    set by hand at the left edge, that would be cut off."""
    for name, figure in drawn.items():
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
        assert buffer.getvalue().startswith(b"\x89PNG"), name
        for text in figure.texts:
            assert text.get_window_extent().x1 <= figure.bbox.x1, (name, text.get_text())


def test_slides_title_counts_by_hand(tmp_path):
    train, table = write_data(tmp_path)
    table.loc[:11, "slide"] = [None, "b", "c", *["a"] * 9]
    rewrite(tmp_path, table, train)
    packed, _ = surveyed(tmp_path)
    texts = [text.get_text() for text in pictures.slides(packed).texts]
    assert texts[0] == "3 slides: 1 hold both classes, 1 only normal, 1 only tumour patches"
    assert "1 patch of unknown slide" in texts[1]


def test_blurred_patches_are_counted_once_and_without_blanks(tmp_path):
    """Catches explore.json and the picture's title giving two numbers for one thing."""
    train, table = write_data(tmp_path)
    train[[0, 5]] = 128  # patch 0 is flagged blank_black
    rewrite(tmp_path, table, train)
    packed, findings = surveyed(tmp_path)
    assert findings.blurred.sum() == 1
    title = pictures.blurred(packed, findings).texts[0].get_text()
    assert title.startswith("1 of 12 patches are blurred")


def test_duplicate_sets_are_whole(tmp_path):
    """The first train patch, the second and a test patch share their pixels."""
    write_data(tmp_path, duplicate=True)
    packed, findings = surveyed(tmp_path)
    (found,) = findings.duplicates
    assert [int(i, 16) for i in found["id"]] == [0, 1, 12]
    texts = pictures.duplicates(packed, findings).axes[0].texts
    assert texts[0].get_text() == "00000000… × 3\nnormal and tumour"


def test_the_square_is_around_pixels_32_to_63():
    """Catches a square, or a mean inside it, one pixel off the region that the label is about."""
    axes = Figure().subplots()
    draw_centre(axes, top=100, left=200)
    for square in axes.patches:
        (x, y), (width, height) = square.get_xy(), (square.get_width(), square.get_height())
        # pixel 32 is drawn from 31.5 on
        assert (x, x + width) == (200 + 31.5, 200 + 63.5)
        assert (y, y + height) == (100 + 31.5, 100 + 63.5)
    assert list(range(96))[CENTRE] == list(range(32, 64))


def test_one_is_no_plural():
    assert [counted(n, "set") for n in (0, 1, 1_000)] == ["0 sets", "1 set", "1,000 sets"]
    assert counted(2, "patch") == "2 patches"


def test_class_colours_stay_apart_in_grey():
    """Printed without colour, the two classes must still be told apart."""
    greys = [np.dot(to_rgb(colour), [0.299, 0.587, 0.114]) for colour in CLASS_COLOURS]
    assert abs(greys[0] - greys[1]) > 0.08


def test_many_slides_are_not_named(tmp_path):
    """Catches 200 names written over each other."""
    train, table = write_data(tmp_path, n=60)
    table.loc[:59, "slide"] = [f"slide {i}" for i in range(60)]
    rewrite(tmp_path, table, train)
    axes = pictures.slides(surveyed(tmp_path)[0]).axes[0]
    assert axes.get_xlabel() == "slides, largest first"
    assert pd.isna(table["slide"].iloc[-1])
