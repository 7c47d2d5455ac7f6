"""Stage explore: which pictures and numbers stand on disk for which data."""

import contextlib

import numpy as np
import pandas as pd
import pytest

from src import explore as explore_stage
from src import paths
from src.exploration.findings import ExploreError
from src.params import ExploreParams, load_params
from src.system.durable import read_json, verify_folder, write_manifest
from src.system.errors import ProjectError
from src.tracking import exploration_run
from tests.data.tables import write_split_folder
from tests.exploration.store import rewrite, survey_only, write_data

PARAMS = ExploreParams(seed=1, patches_per_class=4)
ALWAYS = {
    "blank.png",
    "blurred.png",
    "channel_histograms.png",
    "labels.png",
    "mean_patches.png",
    "samples_normal.png",
    "samples_tumour.png",
    "splits.png",
    "stain.png",
}


class Logged:
    """MLflow's run as far as it is used."""

    def log_result(self, report, folder):
        pass


@contextlib.contextmanager
def tracked(tags):
    assert set(tags) == {"content_digest", "groups_are", "slide_disjoint"}
    yield Logged()


def run_explore(tmp_path, tracking=tracked):
    """The stage in ``tmp_path``; its report."""
    shipped = load_params()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(
            explore_stage, "load_params", lambda: shipped.model_copy(update={"explore": PARAMS})
        )
        patched.setattr(explore_stage, "configure", lambda _: None)
        patched.setattr(exploration_run, "exploration_run", tracking)
        for name, path in (
            ("INGEST", "ingest"),
            ("INGEST_REPORT", "ingest/report.json"),
            ("SPLIT_DIR", "split"),
            ("SPLIT_REPORT", "split/split.json"),
            ("EXPLORE", "explore"),
        ):
            patched.setattr(paths, name, tmp_path / path)
        explore_stage.main()
    return read_json(tmp_path / "explore" / "explore.json")


def test_pictures_and_report_are_written_and_verify(tmp_path):
    write_data(tmp_path)
    report = run_explore(tmp_path)
    assert set(verify_folder(tmp_path / "explore")) == ALWAYS | {"slides.png", "explore.json"}
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


def test_without_mlflow_the_pictures_are_there_all_the_same(tmp_path):
    """Catches an unreachable tracking server keeping a person from their data."""
    write_data(tmp_path)

    def unreachable(_):
        raise ProjectError("MLflow can't be reached")

    with pytest.raises(ProjectError, match="can't be reached"):
        run_explore(tmp_path, unreachable)
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
    (folder / "split.json").write_text('{"group_by": "patch"}')
    write_manifest(folder)
    with pytest.raises(ExploreError, match="1 labelled patches have no split"):
        run_explore(tmp_path)
