"""Stage split: what stands on disk afterwards, and what is said about it."""

import json
import logging

import numpy as np
import pandas as pd
import pytest

from src.data.splitting import SplitError
from src.params import SplitParams
from src.split import split
from src.system.durable import verify_folder

LOG = logging.getLogger("test.split")
PARAMS = SplitParams(seed=1, val_fraction=0.15, holdout_fraction=0.15)


def write_patches(folder, *, n=200, slides=True, n_unknown=0, n_test=10, label=None):
    """``patches.parquet`` as ingest leaves it: ``n`` labelled patches, ten a slide."""
    slide = [f"s{i // 10:02d}" if slides and i >= n_unknown else None for i in range(n)]
    labels = [i % 10 < 4 if label is None else label for i in range(n)]
    table = pd.DataFrame(
        {
            "id": [f"{i:040x}" for i in range(n + n_test)],
            "subset": ["train"] * n + ["test"] * n_test,
            "row": [*range(n), *range(n_test)],
            "label": pd.array([*map(int, labels), *[None] * n_test], dtype="Int8"),
            "slide": pd.array([*slide, *[None] * n_test], dtype="str"),
            "sha256": [f"{i:064x}" for i in range(n + n_test)],
            "flags": "",
        }
    )
    folder.mkdir(exist_ok=True)
    table.to_parquet(folder / "patches.parquet")
    return table


def run_split(tmp_path, params=PARAMS):
    return split(params, ingest=tmp_path / "ingest", destination=tmp_path / "split", log=LOG)


def test_every_labelled_patch_and_no_test_patch_is_written(tmp_path):
    table = write_patches(tmp_path / "ingest")
    report = run_split(tmp_path)
    written = pd.read_parquet(tmp_path / "split" / "split.parquet")
    assert written.columns.tolist() == ["id", "split", "group"]
    assert sorted(written["id"]) == table[table["subset"] == "train"]["id"].tolist()
    assert json.loads((tmp_path / "split" / "split.json").read_text()) == report
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
    report = run_split(tmp_path)
    assert report["slide_disjoint"] is False
    assert report["group_by"] == "patch"
    [warning] = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "slide_disjoint: false" in warning.message


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
    assert "train 1,400 patches from 140 slides, 40.0 % tumour" in caplog.messages


def test_files_are_the_same_for_any_row_order_of_the_table(tmp_path):
    table = write_patches(tmp_path / "ingest")
    run_split(tmp_path)
    first = verify_folder(tmp_path / "split")
    table.sample(frac=1, random_state=1).to_parquet(tmp_path / "ingest" / "patches.parquet")
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
    table.to_parquet(tmp_path / "ingest" / "patches.parquet")
    report = run_split(tmp_path)
    written = pd.read_parquet(tmp_path / "split" / "split.parquet")
    joined = written.merge(table, on="id")
    assert joined.groupby("sha256")["split"].nunique().max() == 1
    assert report["n_patches_with_identical_pixels"] == 100
