"""The gallery on disk: every chosen patch with its own picture and share."""

import logging

import numpy as np
import pytest

from src import explanation, paths
from src.data.dataset import LabelledPatches
from src.model import gradcam
from src.system.durable import read_json, verify_folder
from tests.evaluation.report_sources import THRESHOLD, predictions

LOG = logging.getLogger("test")


@pytest.fixture
def rows():
    return predictions(60).query("split == 'holdout'")


@pytest.fixture
def asked(monkeypatch, tmp_path, rows):
    """Patches of one grey each, numbered by id; Grad-CAM replaced, what it was asked is kept."""
    asked = []
    n = len(rows)
    # stored in another order than the ids, as in a packed archive
    pixels = np.arange(n, dtype=np.uint8)[::-1, None, None, None] * np.ones((1, 96, 96, 3), "uint8")
    holdout = LabelledPatches(
        split="holdout",
        ids=np.sort(rows["id"].to_numpy(dtype=np.str_)),
        rows=np.arange(n)[::-1],
        labels=np.zeros(n, np.uint8),
        groups=np.array(["g"] * n),
        pixels=pixels,
    )

    def fake(model, patches, for_tumour):  # noqa: ARG001
        asked.extend(zip(patches[:, 0, 0, 0].tolist(), for_tumour.tolist(), strict=True))
        maps = np.zeros((len(patches), 3, 3))
        maps[:, 1, 1] = maps[:, 0, 0] = 1.0
        maps[0] = 0.0
        return maps

    monkeypatch.setattr(gradcam, "gradcam", fake)
    monkeypatch.setattr(gradcam, "visible_px", lambda model: 96)  # noqa: ARG005
    monkeypatch.setattr("src.data.dataset.load_split", lambda split: holdout)  # noqa: ARG005
    monkeypatch.setattr(paths, "GALLERY", tmp_path / "gallery")
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    return asked


def test_gallery_is_complete_and_each_patch_explained_for_its_own_call(asked, rows):
    """Pixels of another patch, or evidence for tumour where the call was normal."""
    explanation.write_gallery(None, rows, threshold=THRESHOLD, seed=1, log=LOG)
    files = verify_folder(paths.GALLERY)
    gallery = read_json(paths.GALLERY / "gallery.json")
    ids = {patch["id"] for patch in gallery["patches"]}
    assert {f"pictures/{id_}.webp" for id_ in ids} <= set(files)
    assert {f"thumbnails/{id_}.webp" for id_ in rows["id"]} <= set(files)
    called = dict(enumerate((rows.sort_values("id")["probability"] >= THRESHOLD).tolist()))
    assert dict(asked) == {grey: called[grey] for grey in dict(asked)}
    assert len(set(called.values())) == 2
    shares = [patch["centre_share"] for patch in gallery["patches"]]
    assert set(shares) == {0.5, None}
    share = gallery["centre_share"]
    assert (share["mean"], share["n"], share["n_without_evidence"]) == (0.5, 29, 1)
    assert share["area"] == pytest.approx(1 / 9)
