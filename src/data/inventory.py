"""What an archive holds, before a pixel is read: ids, labels, order, slides, all consistent."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from src.data.archives import IMAGE_SUFFIX, Archive, ArchiveError
from src.data.folder_archive import read_table_file
from src.data.labels import (
    LABELS_FILE,
    SLIDES_FILE,
    SUBMISSION_FILE,
    TableError,
    check_both_classes,
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
        Of the patches whose slide is known; None without any table of slides.
    n_slides_unused
        Rows of the tables of slides that name no patch of the archive.
    slides_from
        Names of the tables of slides; None without one.
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
        A table of slides outside the archive. An archive of whose patches it names any has its
        own ``slides.csv`` ignored: one slide must not bear two names.

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
    labels = _read_labels(archive)
    order: list[str] = []
    if with_test:
        data = _read_table(archive, SUBMISSION_FILE, "submission file")
        order = parse_submission_ids(data, _name_of(SUBMISSION_FILE, archive))
    _match_train(train, labels)
    _match_test(test, order)
    _check_disjoint(train, test)
    check_both_classes(labels.values())
    slide_of, slides_from = _read_slides(archive, slides)
    known = train | test
    used = {i: slide for i, slide in slide_of.items() if i in known}
    return Inventory(
        train_ids=sorted(train),
        test_ids=sorted(test),
        labels=labels,
        submission_order={patch_id: position for position, patch_id in enumerate(order)},
        slides=used if slides_from else None,
        n_slides_unused=len(slide_of) - len(used),
        slides_from=" and ".join(slides_from) or None,
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


def _read_labels(archive: Archive) -> dict[str, int]:
    labels: dict[str, int] = {}
    for part in archive.parts():
        data = _read_table(part, LABELS_FILE, "labels file")
        found = parse_labels(data, _name_of(LABELS_FILE, part))
        twice = found.keys() & labels.keys()
        if twice:
            raise TableError(
                f"duplicate id {min(twice)}{_count(twice)} in {_name_of(LABELS_FILE, part)}: "
                "another archive labels it; take one archive out of ingest.extra"
            )
        labels |= found
    return labels


def _name_of(file: str, archive: Archive) -> str:
    return f"{file} of {archive.path.name}"


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


def _read_slides(archive: Archive, table: Path | None) -> tuple[dict[str, str], list[str]]:
    """Slide of each patch, and the tables it comes from."""
    named = {} if table is None else parse_slides(read_table_file(table), table.name)
    slides, names = dict(named), [] if table is None else [table.name]
    for part in archive.parts():
        data = part.read(SLIDES_FILE)
        if data is None or not named.keys().isdisjoint(part.images("train") or ()):
            continue
        slides |= parse_slides(data, _name_of(SLIDES_FILE, part))
        names.append(SLIDES_FILE)
    return slides, list(dict.fromkeys(names))


def _count(ids: Collection[str]) -> str:
    return f" ({len(ids):,} in all)" if len(ids) > 1 else ""
