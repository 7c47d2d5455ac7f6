"""Stage explore: which pictures and numbers stand on disk for which data."""

import json
import logging

import numpy as np
import pandas as pd
import pytest

from src.explore import ExploreError, explore, open_packed, report_findings, survey_packed
from src.params import ExploreParams
from src.system.durable import verify_folder

LOG = logging.getLogger("test.explore")
PARAMS = ExploreParams(seed=1, patches_per_class=4)
ALWAYS = {
    "blank.png",
    "blurred.png",
    "channel_histograms.png",
    "channel_reference.png",
    "labels.png",
    "mean_patches.png",
    "samples_normal.png",
    "samples_tumour.png",
    "stain.png",
}


def write_store(folder, *, n=12, n_test=3, slides=True, duplicate=False):
    """The packed store as ingest leaves it; patch i of train is 20 · i but for a corner."""
    folder.mkdir(exist_ok=True)
    train = np.repeat(np.arange(n, dtype=np.uint8) * 20, 96 * 96 * 3).reshape(n, 96, 96, 3)
    train[:, :8, :8] = np.random.default_rng(0).integers(0, 256, (n, 8, 8, 3))
    np.save(folder / "train.npy", train)
    np.save(folder / "test.npy", np.full((n_test, 96, 96, 3), 255, dtype=np.uint8))
    digests = [f"{i:064x}" for i in range(n + n_test)]
    if duplicate:
        digests[n] = digests[1] = digests[0]
    table = pd.DataFrame(
        {
            "id": [f"{i:040x}" for i in range(n + n_test)],
            "subset": ["train"] * n + ["test"] * n_test,
            "row": [*range(n), *range(n_test)],
            "label": pd.array([*(i % 2 for i in range(n)), *[None] * n_test], dtype="Int8"),
            "slide": pd.array(
                [f"s{i % 3}" if slides and i < n else None for i in range(n + n_test)], dtype="str"
            ),
            "sha256": digests,
            "flags": ["blank_black", *[""] * (n - 1), "duplicate_of:0", *[""] * (n_test - 1)],
        }
    )
    table.to_parquet(folder / "patches.parquet")
    return train, table


def run_explore(tmp_path):
    return explore(PARAMS, ingest=tmp_path / "ingest", destination=tmp_path / "explore", log=LOG)


def survey_only(tmp_path):
    """The report without drawing a picture, which takes seconds."""
    packed = open_packed(tmp_path / "ingest")
    return report_findings(packed, survey_packed(packed, LOG))


def test_pictures_and_report_are_written_and_verify(tmp_path):
    write_store(tmp_path / "ingest")
    report = run_explore(tmp_path)
    assert set(verify_folder(tmp_path / "explore")) == ALWAYS | {"slides.png", "explore.json"}
    assert json.loads((tmp_path / "explore" / "explore.json").read_text()) == report
    assert set(report["pictures"]) == ALWAYS | {"slides.png"}


def test_report_holds_the_counts_and_the_channel_means_of_known_pixels(tmp_path):
    train, _ = write_store(tmp_path / "ingest")
    report = survey_only(tmp_path)
    assert (report["n_train"], report["n_normal"], report["n_tumour"]) == (12, 6, 6)
    assert (report["n_test"], report["n_slides"]) == (3, 3)
    means = (train / 255).mean(axis=(0, 1, 2))
    assert report["channels"]["train"]["mean"] == pytest.approx(means.tolist(), abs=1e-6)
    assert report["channels"]["test"]["mean"] == [1.0, 1.0, 1.0]
    assert report["channels"]["train_like_reference"] == dict.fromkeys(
        ("red", "green", "blue"), False
    )
    assert report["flags"]["train"] == {"blank_white": 0, "blank_black": 1, "duplicate_of": 0}
    assert report["flags"]["test"] == {"blank_white": 0, "blank_black": 0, "duplicate_of": 1}


def test_no_slides_no_picture_of_slides_and_duplicates_bring_theirs(tmp_path):
    write_store(tmp_path / "ingest", slides=False, duplicate=True)
    report = run_explore(tmp_path)
    assert set(report["pictures"]) == ALWAYS | {"duplicates.png"}
    assert report["duplicates"] == {"n_sets": 1, "n_conflicts": 1, "n_across": 1}
    assert report["stain"]["eosin"]["share_explained_by_slide"] is None


def test_row_order_of_the_table_is_irrelevant(tmp_path):
    """A label joined by position instead of by ``row`` would move between patches."""
    _, table = write_store(tmp_path / "ingest")
    first = survey_only(tmp_path)
    table.sample(frac=1, random_state=2).to_parquet(tmp_path / "ingest" / "patches.parquet")
    assert survey_only(tmp_path) == first


def test_blank_patches_do_not_count_as_stain(tmp_path):
    """A black patch has thirty times the density of tissue and would drown it."""
    write_store(tmp_path / "ingest")
    assert survey_only(tmp_path)["stain"]["haematoxylin"]["p95"] < 2.0


def test_quarantined_test_patches_have_no_pixels_to_look_at(tmp_path):
    _, table = write_store(tmp_path / "ingest")
    unread = table.iloc[[-1]].assign(id="f" * 40, row=-1, sha256=None, flags="quarantined")
    pd.concat([table, unread]).to_parquet(tmp_path / "ingest" / "patches.parquet")
    assert survey_only(tmp_path)["n_test"] == 3


def test_no_test_patches(tmp_path):
    _, table = write_store(tmp_path / "ingest")
    table[table["subset"] == "train"].to_parquet(tmp_path / "ingest" / "patches.parquet")
    np.save(tmp_path / "ingest" / "test.npy", np.empty((0, 96, 96, 3), dtype=np.uint8))
    assert survey_only(tmp_path)["channels"]["test"] is None


def test_table_and_pixels_that_disagree_are_refused(tmp_path):
    _, table = write_store(tmp_path / "ingest")
    table.drop(index=5).to_parquet(tmp_path / "ingest" / "patches.parquet")
    with pytest.raises(
        ExploreError, match=r"train\.npy holds 12 patches, patches\.parquet names 11"
    ):
        run_explore(tmp_path)
    assert not (tmp_path / "explore").exists()
