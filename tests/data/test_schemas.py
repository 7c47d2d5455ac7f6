"""The schemas: each rule refuses the row that breaks it, in one line."""

from collections.abc import Callable

import pandas as pd
import pytest

from src.data.schemas import SchemaError, check_patches, check_split
from tests.data.tables import patches_frame

Break = Callable[[pd.DataFrame], pd.DataFrame]


def set_to(column: str, value: object) -> Break:
    def broken(frame: pd.DataFrame) -> pd.DataFrame:
        changed = frame.copy()
        changed.loc[1, column] = value
        return changed

    return broken


def test_sound_tables_pass() -> None:
    frame = patches_frame([0, 1, 1], n_test=2, slides=["a", None, "b"], phash=[6, 2**63, 0, 1, 2])
    pd.testing.assert_frame_equal(check_patches(frame, "t", "r"), frame)
    quarantined = frame.copy()
    quarantined.loc[4, ["row", "sha256"]] = [-1, None]
    check_patches(quarantined, "t", "r")


@pytest.mark.parametrize(
    ("breaks", "message"),
    [
        (set_to("id", "../x"), "column id must be 40 lower-case hex digits (got '../x')"),
        (set_to("id", f"{0:040x}"), f"column id must not repeat (got '{0:040x}')"),
        (set_to("subset", "holdout"), "column subset must be one of train, test"),
        (set_to("row", 7), "row must count 0, 1, 2 … within each subset"),
        (set_to("row", 0), "row must count 0, 1, 2 … within each subset"),
        (set_to("row", -2), "column row must be ≥ -1 (got '-2')"),
        (set_to("row", -1), "sha256 must be there for every packed patch"),
        (set_to("label", 2), "column label must be 0 to 1 (got '2')"),
        (set_to("label", None), "label must be there in train, and only there"),
        (set_to("sha256", "00"), "column sha256 must be 64 hex digits (got '00')"),
        (set_to("flags", None), "column flags must not be null"),
        (set_to("submission_order", 3), "submission_order must be there in test"),
        (set_to("od_mean_g", -0.5), "column od_mean_g must be 0 to 2.5 (got '-0.5')"),
        (lambda f: f.drop(columns="phash"), "missing column phash"),
        (lambda f: f.assign(tumour=1), "unknown column tumour"),
        (lambda f: f.astype({"label": "float64"}), "column label must be of type Int8"),
    ],
)
def test_broken_tables_are_refused_in_one_line(breaks: Break, message: str) -> None:
    frame = breaks(patches_frame([0, 1, 1], n_test=2))
    with pytest.raises(SchemaError) as caught:
        check_patches(frame, "patches.parquet", "run: x")
    text = str(caught.value)
    assert text.startswith(f"patches.parquet: {message}")
    assert text.endswith("; run: x")
    assert "\n" not in text


def test_group_in_two_splits_is_refused() -> None:
    """Catches a leak at the hand-over, whoever wrote the table."""
    frame = pd.DataFrame(
        {"id": [f"{i:040x}" for i in range(3)], "split": ["train", "val", "val"], "group": "a"}
    )
    with pytest.raises(SchemaError, match="group must lie in one split as a whole"):
        check_split(frame, "split.parquet", "run: x")
    check_split(frame.assign(group=["a", "b", "b"]), "split.parquet", "run: x")
