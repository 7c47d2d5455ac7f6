"""Stage split: what stands on disk afterwards, and what is said about it."""

import logging

import numpy as np
import pandas as pd
import pytest

from src import paths
from src import split as split_stage
from src.data.splits import SplitError
from src.params import SplitParams, load_params
from src.system.durable import read_json, verify_folder
from tests.data.tables import patches_frame, write_store

PARAMS = SplitParams(seed=1, group_by="auto", val_fraction=0.15, holdout_fraction=0.15)


def write_patches(folder, *, n=200, slides=True, n_unknown=0, n_test=10, label=None):
    """``data/ingest`` with ``n`` labelled patches, ten a slide; patch i shows stain i % 6."""
    slide = [f"s{i // 10:02d}" if slides and i >= n_unknown else None for i in range(n)]
    labels = [int(i % 10 < 4) if label is None else label for i in range(n)]
    # least variance along one of six directions: what a stain plane's normal sees
    normals = np.array(
        [[1, 0, 0], [0, 1, 0], [0, 0, 1], [0.6, 0.8, 0], [0.6, 0, 0.8], [0, 0.6, 0.8]]
    )
    covariances = 0.05 * np.eye(3) - 0.04 * normals[:, :, None] * normals[:, None]
    density = np.full((n + n_test, 9), 0.25)
    density[:, 3:] = covariances[:, *np.triu_indices(3)][np.arange(n + n_test) % 6]
    table = patches_frame(labels, n_test=n_test, slides=slide, density=density)
    write_store(folder, table)
    return table


def run_split(tmp_path, params=PARAMS):
    """The stage in ``tmp_path``; what it says of itself."""
    shipped = load_params()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(
            split_stage, "load_params", lambda: shipped.model_copy(update={"split": params})
        )
        patched.setattr(split_stage, "configure", lambda _: None)
        patched.setattr(logging.getLogger("hcd"), "propagate", True)
        patched.setattr(paths, "INGEST", tmp_path / "ingest")
        patched.setattr(paths, "SPLIT_DIR", tmp_path / "split")
        split_stage.main()
    return read_json(tmp_path / "split" / "split.json")


def test_every_labelled_patch_and_no_test_patch_is_written(tmp_path):
    table = write_patches(tmp_path / "ingest")
    run_split(tmp_path)
    written = pd.read_parquet(tmp_path / "split" / "split.parquet")
    assert written.columns.tolist() == ["id", "split", "group"]
    assert sorted(written["id"]) == table[table["subset"] == "train"]["id"].tolist()
    assert set(verify_folder(tmp_path / "split")) == {"split.parquet", "split.json"}


def test_report_says_what_was_written(tmp_path):
    write_patches(tmp_path / "ingest")
    report = run_split(tmp_path)
    written = pd.read_parquet(tmp_path / "split" / "split.parquet")
    for name, part in report["splits"].items():
        rows = written[written["split"] == name]
        assert part["n_patches"] == len(rows)
        assert part["n_groups"] == rows["group"].nunique()
        assert report["fraction_got"][name] == len(rows) / 200
    assert report["slide_disjoint"] is True
    assert report["fraction_wanted"] == {"train": 0.7, "val": 0.15, "holdout": 0.15}
    assert set(report["leak_audit"].values()) == {0}
    assert report["splits"]["holdout"]["tumour_fraction"] == pytest.approx(0.4)


def test_without_slides_the_report_and_the_log_say_so(tmp_path, caplog):
    write_patches(tmp_path / "ingest", slides=False)
    report = run_split(tmp_path, PARAMS.model_copy(update={"group_by": "patch"}))
    assert report["slide_disjoint"] is False
    assert report["group_by"] == "patch"
    # a set: where another test has set up logging, pytest lists each record twice
    said = {record.message for record in caplog.records if record.levelno == logging.WARNING}
    assert said == set(report["warnings"])
    assert "slide_disjoint: false" in said.pop()


def test_unknown_slides_stay_in_train_and_are_counted(tmp_path, caplog):
    write_patches(tmp_path / "ingest", n_unknown=35)
    report = run_split(tmp_path)
    written = pd.read_parquet(tmp_path / "split" / "split.parquet")
    unknown = written["group"].str.startswith("patch:")
    assert unknown.sum() == 35
    assert set(written.loc[unknown, "split"]) == {"train"}
    assert report["n_patches_without_slide"] == 35
    assert "35 patches of unknown slide stay in train" in caplog.text


def test_log_line_has_counts_and_units(tmp_path, caplog):
    write_patches(tmp_path / "ingest", n=2_000)
    with caplog.at_level(logging.INFO):
        run_split(tmp_path)
    assert "train 1,400 patches from 140 groups (slides), 40.0 % tumour" in caplog.messages


def test_files_are_the_same_for_any_row_order_of_the_table(tmp_path):
    table = write_patches(tmp_path / "ingest")
    run_split(tmp_path)
    first = verify_folder(tmp_path / "split")
    write_store(tmp_path / "ingest", table.sample(frac=1, random_state=1))
    run_split(tmp_path)
    assert verify_folder(tmp_path / "split") == first


def test_a_refused_split_leaves_the_previous_one(tmp_path):
    write_patches(tmp_path / "ingest")
    run_split(tmp_path)
    before = verify_folder(tmp_path / "split")
    write_patches(tmp_path / "ingest", label=1)
    with pytest.raises(SplitError, match="need both classes"):
        run_split(tmp_path)
    assert verify_folder(tmp_path / "split") == before
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_identical_pixels_never_cross_the_splits(tmp_path):
    table = write_patches(tmp_path / "ingest", slides=False)
    table.loc[:99, "sha256"] = np.repeat(table["sha256"].iloc[:50].to_numpy(), 2)
    write_store(tmp_path / "ingest", table)
    report = run_split(tmp_path, PARAMS.model_copy(update={"group_by": "patch"}))
    written = pd.read_parquet(tmp_path / "split" / "split.parquet")
    joined = written.merge(table, on="id")
    assert joined.groupby("sha256")["split"].nunique().max() == 1
    assert report["n_patches_with_identical_pixels"] == 100


def test_stain_groups_are_called_a_stand_in_everywhere(tmp_path, caplog):
    write_patches(tmp_path / "ingest", n=400, slides=False)
    report = run_split(tmp_path)
    assert (report["group_by"], report["slide_disjoint"]) == ("stain", False)
    assert report["groups_are"] == "stain clusters, a stand-in for slides"
    assert "a stand-in for slides" in caplog.text
    written = pd.read_parquet(tmp_path / "split" / "split.parquet")
    assert written["group"].str.startswith("stain:").all()


def test_fewer_than_five_groups_of_a_class_are_warned_of(tmp_path):
    """27 slides: val and holdout get 4 each; 33 slides: 5."""
    write_patches(tmp_path / "ingest", n=270)
    report = run_split(tmp_path)
    assert report["splits"]["holdout"]["min_groups_per_class"] == 4
    assert "holdout holds one class in only 4 groups" in " ".join(report["warnings"])
    write_patches(tmp_path / "ingest", n=330)
    report = run_split(tmp_path)
    assert report["splits"]["holdout"]["min_groups_per_class"] == 5
    assert report["warnings"] == []


def test_blank_patches_stay_in_train_and_are_no_groups(tmp_path):
    """Catches blanks counted as clusters: 'fewer than 5' would never be said at Kaggle's size."""
    table = write_patches(tmp_path / "ingest", n=400, slides=False)
    table.loc[:39, "flags"] = "blank_white"
    write_store(tmp_path / "ingest", table)
    report = run_split(tmp_path)
    written = pd.read_parquet(tmp_path / "split" / "split.parquet").merge(table, on="id")
    assert set(written.loc[written["flags"] != "", "split"]) == {"train"}
    assert report["n_groups"] == 6
    assert sum(part["n_groups"] for part in report["splits"].values()) == 6
    assert report["splits"]["train"]["n_patches"] == 400 - 2 * 60 - 60
    assert report["n_patches_without_stain"] == 40
    assert "40 blank patches show no stain and stay in train" in " ".join(report["warnings"])
    assert "holdout holds one class in only 2 groups" in " ".join(report["warnings"])


@pytest.mark.parametrize(("n_unknown", "warned"), [(140, False), (170, True)])
def test_splits_far_from_the_wanted_share_are_warned_of(tmp_path, n_unknown, warned):
    """200 patches, 30 wanted in val: with 140 unknown it gets 30, with 170 only 10."""
    write_patches(tmp_path / "ingest", n_unknown=n_unknown)
    report = run_split(tmp_path)
    said = " ".join(report["warnings"])
    expected = "val holds 5.0 % of the patches, 15.0 % were wanted: 170 patches must stay in train"
    assert (expected in said) is warned
    assert ("were wanted" in said) is warned
    assert "train holds one class" not in said, "slides of its patches are unknown, not few"


def test_three_slides_are_refused_before_anything_is_trained(tmp_path):
    """Catches a holdout of one slide: evaluate refuses it, after the training."""
    write_patches(tmp_path / "ingest", n=30)
    with pytest.raises(SplitError, match="two for holdout"):
        run_split(tmp_path)


def test_a_fold_replaces_the_fractions(tmp_path):
    write_patches(tmp_path / "ingest")
    report = run_split(tmp_path, PARAMS.model_copy(update={"n_folds": 5, "fold": 4}))
    assert (report["n_folds"], report["fold"]) == (5, 4)
    assert report["splits"]["holdout"]["n_patches"] == 40
    assert report["fraction_wanted"] == {"train": 0.6, "val": 0.2, "holdout": 0.2}
