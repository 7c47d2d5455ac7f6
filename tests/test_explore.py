"""Stage explore: which pictures and numbers stand on disk for which data."""

import json
import logging

import numpy as np
import pandas as pd
import pytest

from src import explore as explore_stage
from src import paths
from src.data import exploration_pictures, galleries
from src.data.exploration_report import report_findings
from src.data.explored import ExploreError, open_packed, survey_packed
from src.explore import explore
from src.params import ExploreParams
from src.system.durable import verify_folder, write_json, write_manifest
from src.system.errors import ProjectError
from src.tracking import runs
from tests.data.tables import patches_frame, write_split_folder, write_store

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
    "splits.png",
    "stain.png",
}


def write_data(root, *, n=12, n_test=3, slides=True, duplicate=False, **columns):
    """What ingest and split leave; patch i of train is 20 · i but for a corner."""
    train = np.repeat(np.arange(n, dtype=np.uint8) * 20, 96 * 96 * 3).reshape(n, 96, 96, 3)
    train[:, :8, :8] = np.random.default_rng(0).integers(0, 256, (n, 8, 8, 3))
    digests = [f"{i:064x}" for i in range(n + n_test)]
    if duplicate:
        digests[n] = digests[1] = digests[0]
    density = np.random.default_rng(1).uniform(0.1, 0.5, (n + n_test, 9))
    density[0, :3] = 2.4  # the black one
    table = patches_frame(
        [i % 2 for i in range(n)],
        n_test=n_test,
        slides=[f"s{i % 3}" if slides else None for i in range(n)],
        sha256=digests,
        flags=["blank_black", *[""] * (n - 1), "duplicate_of:0", *[""] * (n_test - 1)],
        density=density,
        **columns,
    )
    rewrite(root, table, train)
    return train, table


def rewrite(root, table, train):
    """Both folders anew, for a table that was changed."""
    n_test = int((table["row"][table["subset"] == "test"] >= 0).sum())
    white = np.full((n_test, 96, 96, 3), 255, dtype=np.uint8)
    write_store(root / "ingest", table, train=train, test=white)
    labelled = table[table["subset"] == "train"].sort_values("id")
    splits = [("train", "val", "holdout")[i // 2 % 3] for i in range(len(labelled))]
    folder = write_split_folder(root / "split", labelled["id"].tolist(), splits)
    write_json(folder / "split.json", {"group_by": "patch", "groups_are": "single patches"})
    write_manifest(folder)


def run_explore(tmp_path):
    return explore(
        PARAMS,
        ingest=tmp_path / "ingest",
        split=tmp_path / "split",
        destination=tmp_path / "explore",
        log=LOG,
    )


def survey_only(tmp_path):
    """The report without drawing a picture, which takes seconds."""
    packed = open_packed(tmp_path / "ingest", tmp_path / "split")
    return report_findings(packed, survey_packed(packed, LOG))


def test_pictures_and_report_are_written_and_verify(tmp_path):
    write_data(tmp_path)
    report = run_explore(tmp_path)
    assert set(verify_folder(tmp_path / "explore")) == ALWAYS | {"slides.png", "explore.json"}
    assert json.loads((tmp_path / "explore" / "explore.json").read_text()) == report
    assert set(report["pictures"]) == ALWAYS | {"slides.png"}


def test_report_holds_the_counts_and_the_channel_means_of_known_pixels(tmp_path):
    train, _ = write_data(tmp_path)
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
    write_data(tmp_path, slides=False, duplicate=True)
    report = run_explore(tmp_path)
    assert set(report["pictures"]) == ALWAYS | {"duplicates.png"}
    assert report["duplicates"] == {"n_sets": 1, "n_conflicts": 1, "n_across": 1}
    assert report["stain"]["eosin"]["share_explained_by_slide"] is None


def test_row_order_of_the_table_is_irrelevant(tmp_path):
    """A label joined by position instead of by ``row`` would move between patches."""
    train, table = write_data(tmp_path)
    first = survey_only(tmp_path)
    rewrite(tmp_path, table.sample(frac=1, random_state=2), train)
    assert survey_only(tmp_path) == first


def test_blank_patches_do_not_count_as_stain(tmp_path):
    """A black patch has thirty times the density of tissue and would drown it."""
    write_data(tmp_path)
    assert survey_only(tmp_path)["stain"]["haematoxylin"]["p95"] < 2.0


def test_blurred_patches_are_counted_once_and_without_blanks(tmp_path, monkeypatch):
    """Catches explore.json and the picture's title giving two numbers for one thing."""
    train, table = write_data(tmp_path)
    train[[0, 5]] = 128  # patch 0 bears the flag blank_black
    rewrite(tmp_path, table, train)
    titles = []
    monkeypatch.setattr(galleries, "_gallery", lambda _, *, title, **__: titles.append(title))
    packed = open_packed(tmp_path / "ingest", tmp_path / "split")
    findings = survey_packed(packed, LOG)
    assert report_findings(packed, findings)["sharpness"]["n_blurred"] == 1
    exploration_pictures._blur_gallery(packed, findings)
    assert titles[0].startswith("1 of 12 patches are blurred")


def test_without_mlflow_the_pictures_are_there_all_the_same(tmp_path, monkeypatch):
    """Catches an unreachable tracking server keeping a person from their data."""
    write_data(tmp_path)
    write_json(tmp_path / "ingest" / "report.json", {"digests": {"train": "0" * 32}})
    shown = {"group_by": "patch", "groups_are": "single patches", "slide_disjoint": False}
    write_json(tmp_path / "split" / "split.json", shown)
    write_manifest(tmp_path / "split")
    for name, path in (
        ("INGEST", "ingest"),
        ("INGEST_REPORT", "ingest/report.json"),
        ("SPLIT_DIR", "split"),
        ("SPLIT_REPORT", "split/split.json"),
        ("EXPLORE", "explore"),
    ):
        monkeypatch.setattr(paths, name, tmp_path / path)
    monkeypatch.setattr(explore_stage, "configure", lambda _: None)

    def unreachable(*_):
        raise ProjectError("MLflow can't be reached")

    monkeypatch.setattr(runs, "log_exploration", unreachable)
    with pytest.raises(ProjectError, match="can't be reached"):
        explore_stage.main()
    assert set(verify_folder(tmp_path / "explore")) > ALWAYS


def test_quarantined_test_patches_have_no_pixels_to_look_at(tmp_path):
    train, table = write_data(tmp_path)
    unread = table.iloc[[-1]].assign(id="f" * 40, row=-1, sha256=None, flags="quarantined")
    rewrite(tmp_path, pd.concat([table, unread], ignore_index=True), train)
    assert survey_only(tmp_path)["n_test"] == 3


def test_no_test_patches(tmp_path):
    train, table = write_data(tmp_path)
    rewrite(tmp_path, table[table["subset"] == "train"], train)
    assert survey_only(tmp_path)["channels"]["test"] is None


def test_table_and_pixels_that_disagree_are_refused(tmp_path):
    train, table = write_data(tmp_path)
    shorter = table.drop(index=5).reset_index(drop=True)
    shorter.loc[shorter["subset"] == "train", "row"] = range(11)
    rewrite(tmp_path, shorter, train)
    with pytest.raises(
        ExploreError, match=r"train\.npy holds 12 patches, patches\.parquet names 11"
    ):
        run_explore(tmp_path)
    assert not (tmp_path / "explore").exists()


def test_near_duplicates_bring_their_picture_and_count_conflicts(tmp_path):
    """Patches 2 and 3 nearly agree and bear different labels."""
    hashes = [None, None, 0b1110, 0b0110, *[None] * 11]
    alike = np.full((15, 9), 0.25)
    write_data(tmp_path, phash=hashes)
    assert survey_only(tmp_path)["near_duplicates"]["n_sets"] == 0, "other colours"
    train, table = write_data(tmp_path, phash=hashes)
    moments = [column for column in table.columns if column.startswith("od_")]
    table[moments] = alike.astype(np.float32)
    rewrite(tmp_path, table, train)
    report = run_explore(tmp_path)
    assert report["near_duplicates"] == {"n_sets": 1, "n_conflicts": 1, "n_across": 0}
    assert "near_duplicates.png" in report["pictures"]


def test_splits_are_compared_without_the_blank_patch(tmp_path):
    """Train holds patches 0, 1, 6 and 7, of which 0 is black."""
    write_data(tmp_path)
    comparison = survey_only(tmp_path)["split_comparison"]
    assert [comparison["splits"][s]["n_patches"] for s in ("train", "val", "holdout")] == [3, 4, 4]
    assert comparison["splits"]["train"]["tumour_fraction"] == pytest.approx(2 / 3, abs=1e-6)
    assert comparison["largest_shift"]["split"] in ("val", "holdout")


def test_patch_without_a_split_is_refused(tmp_path):
    _, table = write_data(tmp_path)
    labelled = table[table["subset"] == "train"]["id"].tolist()
    folder = write_split_folder(tmp_path / "split", labelled[1:], ["train"] * 11)
    write_json(folder / "split.json", {"group_by": "patch"})
    write_manifest(folder)
    with pytest.raises(ExploreError, match="1 labelled patches have no split"):
        run_explore(tmp_path)
