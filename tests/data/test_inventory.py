"""Tables of the archive; the mistakes people make are in tests/faults/test_bad_inputs.py."""

import pytest

from src.data.inventory import TableError, parse_labels, parse_slides, parse_submission_ids
from tests.data.archives import patch_id, table

A, B, C = patch_id(0xA), patch_id(0xB), patch_id(0xC)


def test_quoted_fields_and_blank_lines_are_read() -> None:
    assert parse_labels(f'"id","label"\n"{A}","0"\n\n{B},1\n\n'.encode()) == {A: 0, B: 1}


def test_row_is_counted_as_a_spreadsheet_counts() -> None:
    """Catches a row number that is one or two off where the person looks for it."""
    with pytest.raises(TableError, match="row 4 of"):
        parse_labels(table("id,label", [(A, 0), (B, 1), (C, 7)]))


def test_submission_keeps_its_order() -> None:
    """Catches a submission sorted by id."""
    assert parse_submission_ids(table("id,label", [(C, 0), (A, 0), (B, 0)])) == [C, A, B]


def test_submission_id_twice() -> None:
    with pytest.raises(TableError, match=f"duplicate id {A}"):
        parse_submission_ids(table("id,label", [(A, 0), (A, 0)]))


@pytest.mark.parametrize("header", ["id,slide", "id,wsi"])
def test_slides_in_both_layouts(header: str) -> None:
    assert parse_slides(table(header, [(A, "s1"), (B, "s2 ")])) == {A: "s1", B: "s2"}


def test_blank_slide_is_unknown() -> None:
    """Catches all patches of unknown slide becoming one slide named ''."""
    assert parse_slides(table("id,slide", [(A, "s1"), (B, "")])) == {A: "s1"}


@pytest.mark.parametrize(
    ("data", "core"),
    [
        (table("id,slide", [(A, "s1"), (A, "s1")]), f"duplicate id {A}"),
        (table("id,slide", [(A, "s1"), (A, "s2")]), f"conflicting slides for id {A}"),
        (table("id,slide", [(A, "s1"), (A, "")]), f"conflicting slides for id {A}"),
        (table("patch,slide", [(A, "s1")]), "expected columns id,slide or id,wsi; got patch,slide"),
        (table("id,slide", [("x", "s1")]), "invalid id 'x' in slides.csv row 2"),
        (b'id,label\n"' + A.encode() + b",1\n", "expected columns"),
        (b'id,slide\n"' + A.encode() + b",1\n", "not valid CSV"),
        (b"id,slide\nabc\n", "missing column in slides.csv row 2"),
    ],
)
def test_slides_are_refused(data: bytes, core: str) -> None:
    with pytest.raises(TableError, match=core):
        parse_slides(data)
