"""What an archive holds, before a pixel is read: ids, labels, order, slides, all consistent.

Tables come as bytes and leave as checked values. Rows are counted as a spreadsheet counts them:
the header is row 1.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from src import patch
from src.data.archives import (
    IMAGE_SUFFIX,
    LABELS_FILE,
    SLIDES_FILE,
    SUBMISSION_FILE,
    Archive,
    ArchiveError,
    read_table_file,
)
from src.system.errors import ProjectError

KAGGLE = "https://www.kaggle.com/c/histopathologic-cancer-detection/data"

_ID = re.compile(patch.ID)
_WHOLE_NUMBER = re.compile(r"[+-]?[0-9]+")
_LABELS_HEADER = ("id", "label")
_SLIDES_HEADERS = (("id", "slide"), ("id", "wsi"))
_MAX_SHOWN = 60

T = TypeVar("T")


class TableError(ProjectError):
    """A table of the archive is missing, malformed or contradicts itself."""


@dataclass(frozen=True)
class Inventory:
    """The patches of an archive by id.

    Attributes
    ----------
    train_ids, test_ids
        Sorted; every one has an image.
    labels
        Of every train id: 0 normal, 1 tumour.
    submission_order
        Of every test id: its position in ``sample_submission.csv``, from 0.
    slides
        Of the patches whose slide is known; None without any table of slides.
    n_slides_unused
        Rows of the tables of slides that name no patch of the archive.
    slides_from
        Name of the table of slides; None without one.
    """

    train_ids: list[str]
    test_ids: list[str]
    labels: Mapping[str, int]
    submission_order: Mapping[str, int]
    slides: Mapping[str, str] | None
    n_slides_unused: int
    slides_from: str | None = None


def take_inventory(
    archive: Archive, *, with_test: bool = True, slides: Path | None = None
) -> Inventory:
    """Read names and tables of ``archive`` and check that they agree.

    Parameters
    ----------
    with_test
        False leaves the test images and ``sample_submission.csv`` out.
    slides
        A table of slides outside the archive, instead of its own ``slides.csv``.

    Raises
    ------
    ArchiveError
        A folder or image is missing, or an image is there that no table names.
    TableError
        A table is missing, malformed or contradicts itself.
    """
    train = _image_ids(archive, "train")
    test = _image_ids(archive, "test") if with_test else set()
    if not train:
        raise ArchiveError(f"no .tif files in train of {archive.path}; fetch it from {KAGGLE}")
    labels = parse_labels(
        _read_table(archive, LABELS_FILE, "labels file"), f"{LABELS_FILE} of {archive.path.name}"
    )
    order: list[str] = []
    if with_test:
        order = parse_submission_ids(
            _read_table(archive, SUBMISSION_FILE, "submission file"),
            f"{SUBMISSION_FILE} of {archive.path.name}",
        )
    _match_train(train, labels)
    _match_test(test, order)
    both = train & test
    if both:
        raise ArchiveError(
            f"duplicate id {min(both)}{_count(both)}: in train and in test; remove one image"
        )
    check_both_classes(labels.values())
    slide_of: dict[str, str] = {}
    slides_from = None
    if slides is not None:
        slide_of, slides_from = parse_slides(read_table_file(slides), slides.name), slides.name
    elif (data := archive.read(SLIDES_FILE)) is not None:
        slide_of = parse_slides(data, f"{SLIDES_FILE} of {archive.path.name}")
        slides_from = SLIDES_FILE
    used = {i: slide for i, slide in slide_of.items() if i in train or i in test}
    return Inventory(
        train_ids=sorted(train),
        test_ids=sorted(test),
        labels=labels,
        submission_order={patch_id: position for position, patch_id in enumerate(order)},
        slides=used if slides_from else None,
        n_slides_unused=len(slide_of) - len(used),
        slides_from=slides_from,
    )


def _image_ids(archive: Archive, folder: str) -> set[str]:
    ids = archive.images(folder)
    if ids is None:
        raise ArchiveError(
            f"{folder} folder missing in {archive.path}: expected {folder}/<id>{IMAGE_SUFFIX} "
            f"as in Kaggle's archive; fetch it from {KAGGLE}"
        )
    for patch_id in ids:
        check_id(patch_id, f"{folder} of {archive.path}")
    return set(ids)


def _read_table(archive: Archive, name: str, title: str) -> bytes:
    data = archive.read(name)
    if data is None:
        raise TableError(f"{title} not found: {name} in {archive.path}; fetch it from {KAGGLE}")
    return data


def _match_train(images: Collection[str], labels: Mapping[str, int]) -> None:
    unseen = labels.keys() - images
    if unseen:
        raise ArchiveError(
            f"image missing for id {min(unseen)} of {LABELS_FILE}{_count(unseen)}; "
            "fetch the archive again or remove the row"
        )
    unlabelled = images - labels.keys()
    if unlabelled:
        raise ArchiveError(
            f"label missing for image train/{min(unlabelled)}{IMAGE_SUFFIX}{_count(unlabelled)}; "
            f"add a row to {LABELS_FILE} or remove the image"
        )


def _match_test(images: Collection[str], order: Collection[str]) -> None:
    missing = set(order).difference(images)
    if missing:
        ids = "id" if len(missing) == 1 else "ids"
        raise ArchiveError(
            f"test set incomplete: {len(missing):,} {ids} missing, first: {min(missing)}; "
            f"{SUBMISSION_FILE} names it but test/ lacks the image; fetch the archive again"
        )
    unexpected = set(images).difference(order)
    if unexpected:
        raise ArchiveError(
            f"unexpected id in test: {min(unexpected)}{_count(unexpected)} is not in "
            f"{SUBMISSION_FILE}; remove the image"
        )


def _count(ids: Collection[str]) -> str:
    return f" ({len(ids):,} in all)" if len(ids) > 1 else ""


def check_id(patch_id: str, where: str) -> None:
    """Refuse anything but 40 lower-case hex digits; ``where`` says where it was found."""
    if not _ID.fullmatch(patch_id):
        raise TableError(
            f"invalid id {_shown(patch_id)} in {where}: expected 40 lower-case hex digits, "
            "without folder or ending; correct it"
        )


def parse_labels(data: bytes, file: str = LABELS_FILE) -> dict[str, int]:
    """Patch id → label, 0 normal or 1 tumour, from the bytes of ``train_labels.csv``.

    Parameters
    ----------
    file
        What errors call the table.

    Raises
    ------
    TableError
        Not UTF-8, other columns than id,label, no rows, an id that is invalid or there twice, or a
        label that is missing or not 0 or 1.
    """
    labels: dict[str, int] = {}
    for row, patch_id, text in _rows(data, file, "labels file", (_LABELS_HEADER,)):
        where = f"row {row} of {file}"
        if not text.strip():
            raise TableError(f"label missing for id {patch_id} in {where}; fill in 0 or 1")
        if text not in ("0", "1"):
            kind = "" if _WHOLE_NUMBER.fullmatch(text) else "integer "
            got = _shown(text)
            raise TableError(f"label must be {kind}0 or 1: {where} (got {got}); correct it")
        _add(labels, patch_id, int(text), "labels", f"{file} row {row}")
    return labels


def check_both_classes(labels: Collection[int]) -> None:
    """Refuse labels that are all the same: nothing can be learnt from one class."""
    if len(set(labels)) < 2:
        present = ", ".join(patch.CLASSES[label] for label in set(labels)) or "no patch"
        raise TableError(
            f"need both classes in {LABELS_FILE}, got only: {present}; "
            "add patches of the other class"
        )


def parse_submission_ids(data: bytes, file: str = SUBMISSION_FILE) -> list[str]:
    """Patch ids in the order of ``sample_submission.csv``; its label column is a placeholder.

    Errors as of :func:`parse_labels`, except those of labels.
    """
    ids: dict[str, None] = {}
    for row, patch_id, _ in _rows(data, file, "submission file", (_LABELS_HEADER,)):
        _add(ids, patch_id, None, "rows", f"{file} row {row}")
    return list(ids)


def parse_slides(data: bytes, file: str = SLIDES_FILE) -> dict[str, str]:
    """Patch id → slide from the bytes of a table id,slide or id,wsi; blank slides are left out.

    Errors as of :func:`parse_labels`, except those of labels.
    """
    slides: dict[str, str] = {}
    for row, patch_id, text in _rows(data, file, "slides file", _SLIDES_HEADERS):
        _add(slides, patch_id, text.strip(), "slides", f"{file} row {row}")
    return {patch_id: slide for patch_id, slide in slides.items() if slide}


def _add(found: dict[str, T], patch_id: str, value: T, values: str, where: str) -> None:
    if patch_id in found:
        problem = "duplicate" if found[patch_id] == value else f"conflicting {values} for"
        raise TableError(f"{problem} id {patch_id} in {where}; keep one row")
    found[patch_id] = value


def _rows(
    data: bytes, file: str, title: str, headers: tuple[tuple[str, str], ...]
) -> Iterator[tuple[int, str, str]]:
    """Row number, id and second field of every row that isn't blank; the header is checked."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise TableError(f"not UTF-8: {file}; save it as UTF-8") from error
    if "\0" in text:  # UTF-16 of plain letters, without a byte-order mark
        raise TableError(f"not UTF-8: {file} holds NUL bytes; save it as UTF-8")
    if not text.strip():
        raise TableError(f"{title} is empty: {file}; fetch the archive again")
    n_rows = 0
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        _check_header(next(reader), file, headers)
        for fields in reader:
            if not fields:
                continue
            if len(fields) != 2:
                problem = "unexpected column" if len(fields) > 2 else "missing column"
                raise TableError(
                    f"{problem} in {file} row {reader.line_num}: expected 2 fields, "
                    f"got {len(fields)}; correct the row"
                )
            n_rows += 1
            check_id(fields[0], f"{file} row {reader.line_num}")
            yield reader.line_num, fields[0], fields[1]
    except csv.Error as error:
        raise TableError(
            f"not valid CSV: {file} row {reader.line_num} ({error}); correct the row, or export "
            "the table again"
        ) from error
    if not n_rows:
        raise TableError(f"{title} has no rows: {file}; fetch the archive again")


def _check_header(header: list[str], file: str, headers: tuple[tuple[str, str], ...]) -> None:
    if tuple(header) in headers:
        return
    if len(header) > 2 and tuple(header[:2]) in headers:
        raise TableError(f"unexpected column {_shown(header[2])} in {file}; remove it")
    expected = " or ".join(",".join(columns) for columns in headers)
    got = _shown(",".join(header), quoted=False)
    raise TableError(f"expected columns {expected}; got {got} in {file}; correct the header")


def _shown(text: str, *, quoted: bool = True) -> str:
    short = text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + "…"
    return repr(short) if quoted else repr(short)[1:-1]
