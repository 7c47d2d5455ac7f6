"""Which patches a person is shown."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from src.data.dataset import LabelledPatches
from src.evaluation.gallery import choose_patches, explained_picture, write_gallery
from src.system.durable import read_json, verify_folder
from tests.evaluation.report_sources import THRESHOLD, predictions

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


def test_gallery_is_complete_and_each_patch_explained_for_its_own_call(tmp_path):
    """Pixels of another patch, or evidence for tumour where the call was normal."""
    rows, asked = predictions(60).query("split == 'holdout'"), []
    n = len(rows)
    holdout = LabelledPatches(
        split="holdout",
        ids=np.sort(rows["id"].to_numpy(dtype=np.str_)),
        rows=np.arange(n)[::-1],  # stored in another order than the ids, as in a packed archive
        labels=np.zeros(n, np.uint8),
        groups=np.array(["g"] * n),
        # each patch of one grey, its place among the ids
        pixels=np.arange(n, dtype=np.uint8)[::-1, None, None, None] * np.ones((1, 96, 96, 3), "u1"),
    )

    def explain(patches, for_tumour):
        asked.extend(zip(patches[:, 0, 0, 0].tolist(), for_tumour.tolist(), strict=True))
        share = np.full(len(patches), 0.5)
        share[0] = np.nan
        return SimpleNamespace(
            maps=np.ones((len(patches), 3, 3)),
            on_patch=np.ones((len(patches), 96, 96)),
            centre_share=share,
            centre_area=1 / 9,
            seen_px=96,
        )

    n_shown = write_gallery(
        tmp_path / "gallery", rows, holdout, explain=explain, threshold=THRESHOLD, seed=1
    )
    files = verify_folder(tmp_path / "gallery")
    gallery = read_json(tmp_path / "gallery" / "gallery.json")
    ids = {patch["id"] for patch in gallery["patches"]}
    assert len(ids) == n_shown
    assert {f"pictures/{id_}.webp" for id_ in ids} <= set(files)
    assert {f"thumbnails/{id_}.webp" for id_ in rows["id"]} <= set(files)
    called = dict(enumerate((rows.sort_values("id")["probability"] >= THRESHOLD).tolist()))
    assert dict(asked) == {grey: called[grey] for grey in dict(asked)}
    assert len(set(called.values())) == 2
    assert {patch["centre_share"] for patch in gallery["patches"]} == {0.5, None}
    assert gallery["centre_share"] == {
        "mean": 0.5,
        "area": 1 / 9,
        "n": 29,
        "n_without_evidence": 1,
    }
