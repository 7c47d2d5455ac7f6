"""One contract for every source, and what may be combined with what."""

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from src import paths
from src.data.archives import Archive, ArchiveError
from src.data.labels import TableError
from src.data.packed import open_pixels, read_patches
from src.data.sources import SOURCES, open_archive, open_archives
from tests.data.archives import ingest, patch_id, pixels_of, table, tiff, tiny_files, write_archive
from tests.data.pcam import pins, write_pcam


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "CACHE", tmp_path / "cache")


def unpacked_folders() -> list[Path]:
    return [f for f in paths.CACHE.glob("*") if f.name != "locks"]


def kaggle(kind: str) -> Callable[[Path], tuple[Path, dict[str, str]]]:
    return lambda folder: (write_archive(kind, folder, tiny_files()), {})


def pcam(folder: Path) -> tuple[Path, dict[str, str]]:
    path = write_pcam(folder / "pcam", gz=True)
    return path, pins(path)


EXAMPLES = {"zip": kaggle("zip"), "folder": kaggle("folder"), "pcam": pcam}


@pytest.fixture(params=SOURCES)
def source(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path, dict[str, str]]:
    return request.param, *EXAMPLES[request.param](tmp_path)


def test_every_source_has_an_example() -> None:
    assert EXAMPLES.keys() == SOURCES.keys()


def test_contract(source: tuple[str, Path, dict[str, str]]) -> None:
    """Catches a source that renames ids, loses members, or needs its directory in every process."""
    kind, path, h5_sha256 = source
    archive = open_archive(path, h5_sha256=h5_sha256)
    assert archive.kind == archive.summary()["kind"] == kind
    ids = archive.images("train") or []
    assert len(ids) == len(set(ids)) > 0
    assert all(len(i) == 40 and set(i) <= set("0123456789abcdef") for i in ids)
    assert archive.images("valid") is None
    assert archive.member("train/none.tif") is None
    assert archive.member(f"train/{(archive.images('test') or [''])[0]}.tif") is None
    packed = pickle.dumps(archive.reader)
    assert len(packed) < 2_000
    member = archive.member(f"train/{ids[0]}.tif")
    assert member is not None
    with pickle.loads(packed).open() as read:
        assert len(read(member)) == member.n_bytes
    archive.close()
    assert unpacked_folders() == [], "unpacked files were left behind"


@pytest.mark.parametrize("workers", [1, 2])
def test_pixels_labels_and_order_arrive_by_id(
    source: tuple[str, Path, dict[str, str]], tmp_path: Path, workers: int
) -> None:
    kind, path, h5_sha256 = source
    out = tmp_path / "out"
    ingest(path, out, workers=workers, h5_sha256=h5_sha256)
    patches, train = read_patches(out), open_pixels("train", out)
    labelled = patches[patches["subset"] == "train"]
    assert labelled["id"].is_monotonic_increasing
    order = patches[patches["subset"] == "test"].sort_values("submission_order")
    if kind == "pcam":
        rows = [(i[:8], int(i[8:], 16)) for i in labelled["id"]]
        assert sorted(row for _, row in rows) == [0, 0, 1, 1, 2, 2, 3, 4]
        first = {prefix: sum(p == prefix for p, _ in rows) for prefix, _ in rows}
        number = {prefix: {5: 0, 3: 1}[n] for prefix, n in first.items()}
        expected = [pixels_of(100 * number[prefix] + row) for prefix, row in rows]
        assert labelled["label"].tolist() == [row % 2 for _, row in rows]
        assert [int(i[8:], 16) for i in order["id"]] == [0, 1, 2, 3]
    else:
        expected = [pixels_of(int(i, 16)) for i in labelled["id"]]
        assert labelled["label"].tolist() == [int(i, 16) % 2 for i in labelled["id"]]
        assert [int(i, 16) for i in order["id"]] == [103, 102, 101]
    np.testing.assert_array_equal(train[labelled["row"]], np.stack(expected))


def more(folder: Path, first: int, n: int = 4, *, label: int | None = None) -> Path:
    """A folder in Kaggle's layout with other ids; all on the slide ``further``."""
    ids = range(first, first + n)
    files = {f"train/{patch_id(i)}.tif": tiff(pixels_of(i)) for i in ids}
    labels = ((patch_id(i), i % 2 if label is None else label) for i in ids)
    files["train_labels.csv"] = table("id,label", labels)
    files["slides.csv"] = table("id,slide", ((patch_id(i), "further") for i in ids))
    return write_archive("folder", folder, files)


def test_extra_archives_join_train_and_leave_test_alone(tmp_path: Path) -> None:
    main = write_archive("zip", tmp_path, tiny_files())
    extra = more(tmp_path / "more", 50)
    report = ingest(main, tmp_path / "out", extra=[extra])
    patches = read_patches(tmp_path / "out")
    labelled = patches[patches["subset"] == "train"]
    assert [int(i, 16) for i in labelled["id"]] == [1, 2, 3, 4, 5, 6, 50, 51, 52, 53]
    assert labelled["label"].tolist() == [int(i, 16) % 2 for i in labelled["id"]]
    expected = np.stack([pixels_of(int(i, 16)) for i in labelled["id"]])
    np.testing.assert_array_equal(open_pixels("train", tmp_path / "out"), expected)
    assert labelled["slide"].notna().sum() == 4
    assert report["patches"] == {"train": 10, "test": 3}
    assert report["archive"]["extra"] == [
        {"name": "archive", "kind": "folder", "bytes": report["archive"]["extra"][0]["bytes"]}
    ]


def test_an_extra_archive_may_hold_one_class(tmp_path: Path) -> None:
    """Catches more tumour patches, which is what people add, being refused."""
    main, extra = write_archive("zip", tmp_path, tiny_files()), more(tmp_path / "more", 50, label=1)
    report = ingest(main, tmp_path / "out", extra=[extra])
    assert report["labels"] == {"normal": 3, "tumour": 7}


def test_an_error_in_a_table_names_the_archive_it_is_in(tmp_path: Path) -> None:
    """Catches a person correcting the wrong one of two files of the same name."""
    main, extra = write_archive("zip", tmp_path, tiny_files()), more(tmp_path / "more", 50, label=2)
    with pytest.raises(TableError, match=r"row 2 of train_labels\.csv of archive "):
        ingest(main, tmp_path / "out", extra=[extra])


def test_table_of_slides_leaves_the_slides_of_other_archives(tmp_path: Path) -> None:
    """Catches a table for Kaggle's patches wiping out the slides of the extra archive."""
    main, extra = write_archive("zip", tmp_path, tiny_files()), more(tmp_path / "more", 50)
    slides = tmp_path / "wsi.csv"
    slides.write_bytes(table("id,wsi", [(patch_id(2), "s2"), (patch_id(3), "s3")]))
    out = tmp_path / "out"
    report = ingest(main, out, extra=[extra], slides=slides)
    patches = read_patches(out).dropna(subset="slide")
    assert dict(zip(patches["id"].map(lambda i: int(i, 16)), patches["slide"], strict=True)) == {
        2: "s2", 3: "s3", **dict.fromkeys(range(50, 54), "further"),
    }  # fmt: skip
    assert report["slides"]["table"] == "wsi.csv and slides.csv"


def test_same_id_in_two_archives_is_refused(tmp_path: Path) -> None:
    main = write_archive("zip", tmp_path, tiny_files())
    with pytest.raises(ArchiveError, match=f"duplicate id {patch_id(6)}"):
        open_archives(main, [more(tmp_path / "more", 6)], no_submission=False)


def opened(path: Path, extra: Path, no_submission: bool) -> Archive:
    h5_sha256 = {k: v for p in (path, extra) if p.is_dir() for k, v in pins(p).items()}
    return open_archives(path, [extra], no_submission=no_submission, h5_sha256=h5_sha256)


def test_pcam_beside_kaggle_needs_no_submission(tmp_path: Path) -> None:
    """Catches training on the labels of Kaggle's test images."""
    main, extra = write_archive("zip", tmp_path, tiny_files()), write_pcam(tmp_path / "pcam")
    with pytest.raises(ArchiveError, match=r"drawn from it.*ingest\.no_submission: true"):
        opened(main, extra, no_submission=False)
    assert len(opened(main, extra, no_submission=True).images("train") or []) == 6 + 8


def test_a_refused_combination_unpacks_nothing(tmp_path: Path) -> None:
    """Catches 8 GB left in .cache by an archive that was refused after it was unpacked."""
    main, extra = write_archive("zip", tmp_path, tiny_files()), write_pcam(tmp_path / "p", gz=True)
    with pytest.raises(ArchiveError, match="drawn from it"):
        opened(extra, main, no_submission=False)
    with pytest.raises(ArchiveError, match="archive not found"):
        opened(extra, tmp_path / "nowhere.zip", no_submission=True)
    assert unpacked_folders() == []


def test_two_packed_pcam_folders_are_open_at_once(tmp_path: Path) -> None:
    """Catches the second waiting for the lock that the first holds, in the same process."""
    first = write_pcam(tmp_path / "a", gz=True, splits={"train": 4})
    second = shutil.copytree(first, tmp_path / "b")
    with pytest.raises(ArchiveError, match="duplicate id"):
        opened(first, second, no_submission=True)
    assert unpacked_folders() == []


@pytest.mark.parametrize("kind", ["zip", "folder"])
def test_no_submission_needs_no_test_images(tmp_path: Path, kind: str) -> None:
    """Catches asking for a folder that would be left out anyway."""
    files = {n: data for n, data in tiny_files().items() if n.startswith("train")}
    main = write_archive(kind, tmp_path, files)
    report = ingest(main, tmp_path / "out", no_submission=True)
    assert report["patches"] == {"train": 6, "test": 0}


def test_no_submission_leaves_the_test_images_out(tmp_path: Path) -> None:
    main = write_archive("zip", tmp_path, tiny_files())
    out = tmp_path / "out"
    report = ingest(main, out, no_submission=True)
    assert report["patches"] == {"train": 6, "test": 0}
    assert open_pixels("test", out).shape == (0, 96, 96, 3)
    assert set(read_patches(out)["subset"]) == {"train"}


@pytest.mark.parametrize("header", ["id,slide", "id,wsi"])
def test_table_of_slides_replaces_the_archives_own(tmp_path: Path, header: str) -> None:
    files = tiny_files()
    files["slides.csv"] = table("id,slide", [(patch_id(1), "old")])
    slides = tmp_path / "patch_id_wsi.csv"
    slides.write_bytes(table(header, [(patch_id(2), "new"), (patch_id(999), "nobody's")]))
    main = write_archive("zip", tmp_path, files)
    out = tmp_path / "out"
    report = ingest(main, out, slides=slides)
    assert read_patches(out)["slide"].dropna().tolist() == ["new"]
    assert report["slides"] == {
        "table": "patch_id_wsi.csv",
        "n_slides": 1,
        "patches_known": 1,
        "patches_unknown": 5,
        "rows_unused": 1,
    }


@pytest.mark.parametrize(
    ("data", "core"),
    [
        (None, "slides file not found"),
        ("folder", r"slides file is a folder: .*slides\.csv; set ingest\.slides to the csv"),
        (b"\xff\xfei\0d\0", "not UTF-8: slides.csv"),
        (table("id,slide", [(patch_id(1), "a"), (patch_id(1), "b")]), "conflicting slides for id"),
        (table("id,slide", [(patch_id(1), "a"), (patch_id(1), "a")]), "duplicate id"),
        (table("patch,slide", []), "expected columns id,slide or id,wsi"),
    ],
)
def test_bad_tables_of_slides_are_refused(
    tmp_path: Path, data: bytes | str | None, core: str
) -> None:
    main = write_archive("zip", tmp_path, tiny_files())
    slides = tmp_path / "slides.csv"
    if data == "folder":
        slides.mkdir()
    elif isinstance(data, bytes):
        slides.write_bytes(data)
    with pytest.raises((ArchiveError, TableError), match=core):
        ingest(main, tmp_path / "out", slides=slides)
    assert not (tmp_path / "out").exists()


def test_table_of_slides_may_not_be_a_link(tmp_path: Path) -> None:
    main = write_archive("zip", tmp_path, tiny_files())
    (tmp_path / "slides.csv").symlink_to("/etc/passwd")
    with pytest.raises(ArchiveError, match="symlink not allowed"):
        ingest(main, tmp_path / "o", slides=tmp_path / "slides.csv")
