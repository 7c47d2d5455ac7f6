"""Which group carries the result."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from src.evaluation.metrics_report import group_table

SETTINGS = {"threshold": 0.5, "confidence": 0.95}


def _patches(n=120, n_groups=7, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(2, size=n)
    scores = np.clip(np.round(rng.normal(0.4 + 0.2 * labels, 0.2), 1), 0, 1)
    return labels, scores, np.array([f"s{g}" for g in rng.integers(n_groups, size=n)])


@pytest.fixture
def rows():
    labels, scores, groups = _patches(n=300)
    table = pd.DataFrame({"label": labels, "probability": scores, "group": groups})
    table["slide"] = table["group"].where(table["group"] != "s6")
    return table.assign(stain=np.where(table["group"] < "s2", "A #aaaaaa", "B #555555"))


def test_table_has_stains_and_slides(rows):
    """Patches without a slide counted as one more slide."""
    table = group_table(rows, **SETTINGS)
    assert table.loc[table["kind"] == "slide", "name"].tolist() == [f"s{g}" for g in range(6)]
    assert table.loc[table["kind"] == "stain", "name"].tolist() == ["A #aaaaaa", "B #555555"]
    inside = rows[rows["slide"] == "s2"]
    row = table[(table["kind"] == "slide") & (table["name"] == "s2")].iloc[0]
    assert row["auroc"] == pytest.approx(roc_auc_score(inside["label"], inside["probability"]))
    assert row["n_tumour"] == inside["label"].sum()
    rest = rows.drop(inside.index)
    assert row["auroc_without"] == pytest.approx(roc_auc_score(rest["label"], rest["probability"]))
    assert row["interval_over"] == "patches"
    stains = table[table["kind"] == "stain"]
    assert stains["n_groups"].tolist() == [2, 5]
    # of 2 groups nobody knows how far a third may lie
    assert stains["interval_over"].tolist() == ["", "groups"]
    assert stains["auroc_low"].isna().tolist() == [True, False]


def test_without_slides_the_groups_are_listed(rows):
    assert set(group_table(rows.assign(slide=None), **SETTINGS)["kind"]) == {"stain", "group"}


def test_slide_of_one_class_has_counts_and_no_auroc(rows):
    """0.5 or 0 would read as a verdict on the slide."""
    normal = rows.assign(label=rows["label"].where(rows["slide"] != "s1", 0))
    row = group_table(normal, **SETTINGS).set_index("name").loc["s1"]
    assert np.isnan(row["auroc"])
    assert np.isnan(row["auroc_low"])
    assert np.isnan(row["sensitivity"])
    assert row["specificity"] > 0


def test_small_groups_are_left_out(rows):
    few = rows[(rows["slide"] != "s1") | (np.arange(300) < 60)]
    assert 0 < (few["slide"] == "s1").sum() < 20
    assert "s1" not in set(group_table(few, **SETTINGS)["name"])
