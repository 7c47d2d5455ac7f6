"""What an archive holds, before a pixel is read: ids, labels, order, slides, all consistent."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from src.data.archives import IMAGE_SUFFIX, Archive, ArchiveError, read_table_file
from src.data.labels import (
    LABELS_FILE,
    SLIDES_FILE,
    SUBMISSION_FILE,
    TableError,
    check_id,
    parse_labels,
    parse_slides,
    parse_submission_ids,
)

KAGGLE = "https://www.kaggle.com/c/histopathologic-cancer-detection/data"


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
        Of the patches whose slide is known; None without ``slides.csv``.
    n_slides_unused
        Rows of the table of slides that name no patch of the archive.
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
        A table of slides outside the archive, in place of its own ``slides.csv``.

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
    labels = parse_labels(_read_table(archive, LABELS_FILE, "labels file"))
    order: list[str] = []
    if with_test:
        order = parse_submission_ids(_read_table(archive, SUBMISSION_FILE, "submission file"))
    _match_train(train, labels)
    _match_test(test, order)
    _check_disjoint(train, test)
    slide_of = _read_slides(archive, slides)
    known = train | test
    used = {i: slide for i, slide in (slide_of or {}).items() if i in known}
    return Inventory(
        train_ids=sorted(train),
        test_ids=sorted(test),
        labels=labels,
        submission_order={patch_id: position for position, patch_id in enumerate(order)},
        slides=None if slide_of is None else used,
        n_slides_unused=len(slide_of or {}) - len(used),
        slides_from=None if slide_of is None else (slides.name if slides else SLIDES_FILE),
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


def _check_disjoint(train: set[str], test: set[str]) -> None:
    both = train & test
    if both:
        raise ArchiveError(
            f"duplicate id {min(both)}{_count(both)}: in train and in test; remove one image"
        )


def _read_slides(archive: Archive, table: Path | None) -> dict[str, str] | None:
    if table is not None:
        return parse_slides(read_table_file(table), table.name)
    data = archive.read(SLIDES_FILE)
    return None if data is None else parse_slides(data)


def _count(ids: Collection[str]) -> str:
    return f" ({len(ids):,} in all)" if len(ids) > 1 else ""
