"""What is said of a split, from the rows that were written."""

import numpy as np
import pandas as pd
import pytest

from src.data import audit
from src.data.audit import audit_leaks, summarise_splits
from tests.data.tables import patches_frame


def written(ids, splits, groups):
    return pd.DataFrame({"id": ids, "split": splits, "group": pd.array(groups, dtype="str")})


def test_summary_counts_by_hand():
    labelled = pd.DataFrame({"id": list("abcdef"), "label": [0, 1, 1, 0, 1, 0]})
    split = written(
        list("abcdef"), ["train"] * 4 + ["val", "holdout"], ["g", "g", "h", "i", "j", "k"]
    )
    assert summarise_splits(labelled, split, group_by="slide")["train"] == {
        "n_patches": 4,
        "n_tumour": 2,
        "tumour_fraction": 0.5,
        "n_groups": 3,
        "n_groups_with_normal": 2,
        "n_groups_with_tumour": 2,
        "min_groups_per_class": 2,
    }


def test_a_patch_of_unknown_slide_or_stain_is_no_group_unless_patches_are():
    """Catches 640 blank patches counted as stain clusters, which silences 'fewer than 5'."""
    labelled = pd.DataFrame({"id": list("abcd"), "label": [0, 1, 0, 0]})
    groups = ["stain:001", "stain:001", "patch:c", "patch:d"]
    split = written(list("abcd"), ["train"] * 4, groups)
    split.loc[len(split)] = ["e", "val", "stain:002"]
    split.loc[len(split)] = ["f", "holdout", "stain:003"]
    labelled = pd.concat([labelled, pd.DataFrame({"id": ["e", "f"], "label": [1, 1]})])
    stain = summarise_splits(labelled, split, group_by="stain")["train"]
    assert (stain["n_patches"], stain["n_groups"], stain["n_groups_with_normal"]) == (4, 1, 1)
    assert summarise_splits(labelled, split, group_by="patch")["train"]["n_groups"] == 3


def labelled_frame(**columns):
    return patches_frame([0, 1, 0, 1], **columns).assign(near=pd.array([None] * 4, dtype="Int64"))


def test_audit_counts_each_kind_of_leak():
    """An audit that always says 0 would hide the leak it is for."""
    digests = [f"{n:064x}" for n in (1, 2, 2, 3)]
    labelled = labelled_frame(slides=["s", "s", None, None], sha256=digests)
    labelled["near"] = pd.array([7, 7, None, None], dtype="Int64")
    split = written(labelled["id"][:3], ["train", "val", "train"], ["g", "g", "h"])
    counted = {
        "groups_crossing_splits": 1,
        "identical_pixels_crossing_splits": 1,
        "near_duplicates_crossing_splits": 1,
        "near_duplicates_found_by_comparing": 0,
        "patches_not_in_exactly_one_split": 1,
    }
    assert audit_leaks(labelled, split, by_slide=False) == counted
    by_slide = audit_leaks(labelled, split, by_slide=True)
    assert by_slide == counted | {"slides_crossing_splits": 1}


@pytest.mark.parametrize(
    ("flipped", "density", "found"),
    [
        (0b1110, 0.25, 1),  # three bits: still a near-duplicate
        (0b11110, 0.25, 0),  # four
        (0b1110, 0.28, 1),  # colours 0.03 apart
        (0b1110, 0.30, 0),  # 0.05
    ],
)
def test_near_duplicates_are_found_though_grouping_missed_them(flipped, density, found):
    """Catches a search that skips pairs: an audit by its own keys would agree with it."""
    base = 0b1011 << 40
    densities = np.full((4, 9), 0.25)
    densities[2, :3] = density
    labelled = labelled_frame(phash=[base, None, base ^ flipped, None], density=densities)
    split = written(labelled["id"], ["train", "train", "holdout", "val"], list("abcd"))
    found_leaks = audit_leaks(labelled, split, by_slide=False)
    assert found_leaks["near_duplicates_found_by_comparing"] == found
    assert found_leaks["near_duplicates_crossing_splits"] == 0
    together = split.assign(split="holdout")
    assert not any(audit_leaks(labelled, together, by_slide=False).values())


def test_no_more_than_the_limit_are_compared(monkeypatch):
    """Catches a comparison of all with all, hours at Kaggle's size."""
    labelled = labelled_frame(phash=[2, 2, 2, 2])
    split = written(labelled["id"], ["train", "holdout", "holdout", "val"], list("abcd"))
    found = audit_leaks(labelled, split, by_slide=False)["near_duplicates_found_by_comparing"]
    assert found == 3
    monkeypatch.setattr(audit, "MAX_PATCHES_COMPARED", 2)
    found = audit_leaks(labelled, split, by_slide=False)["near_duplicates_found_by_comparing"]
    assert found == 2
