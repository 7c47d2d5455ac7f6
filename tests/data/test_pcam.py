"""PatchCamelyon's files: pinned before they are opened, matched before they are believed."""

import gzip
from pathlib import Path

import h5py
import numpy as np
import pytest

from src import paths
from src.data import pcam
from src.data.archives import ArchiveError
from src.data.pcam import PcamArchive
from tests.data.pcam import h5_name, pins, write_pcam


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "CACHE", tmp_path / "cache")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_pcam(tmp_path / "pcam", meta=True)


def test_reading_across_blocks_files_and_backwards(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a block that is taken for its neighbour."""
    monkeypatch.setattr("src.data.pcam._BLOCK_PATCHES", 2)
    archive = PcamArchive(folder, pins(folder))
    names = [f"train/{i}.tif" for i in archive.images("train") or []]
    with archive.reader.open() as read:
        forward = [read(archive.member(name)) for name in names]  # type: ignore[arg-type]
        backward = [read(archive.member(name)) for name in names[::-1]]  # type: ignore[arg-type]
    assert forward == backward[::-1]
    assert len(set(forward)) == 8


def test_unpinned_file_is_not_opened_and_the_line_that_pins_it_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches an HDF5 file from anywhere reaching a library with open overflows."""
    monkeypatch.setattr(h5py, "File", None)
    expected = pins(folder)[h5_name("train", "x")]
    with pytest.raises(ArchiveError, match=rf"h5_sha256: {{.*train_x\.h5: {expected}}}"):
        PcamArchive(folder, {})


def test_published_files_need_no_pin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_pcam(tmp_path / "pcam", gz=True, splits={"train": 4, "valid": 6})
    md5 = {f.name: pcam._md5_of_gz(f) for f in folder.iterdir()}
    of = {s: [md5[f"{h5_name(s, p)}.gz"] for p in "xy"] for s in ("train", "valid")}
    published = {pcam.Published(*pair) for pair in of.values()}
    monkeypatch.setattr(pcam, "_PUBLISHED", published)
    PcamArchive(folder, {}).close()
    crossed = {
        pcam.Published(of["train"][0], of["valid"][1]),
        pcam.Published(of["valid"][0], of["train"][1]),
    }
    monkeypatch.setattr(pcam, "_PUBLISHED", crossed)
    with pytest.raises(ArchiveError, match=r"train_y\.h5\.gz doesn't hold the labels of"):
        PcamArchive(folder, {})


def test_slides_come_from_the_meta_tables(folder: Path) -> None:
    slides = (PcamArchive(folder, pins(folder)).read("slides.csv") or b"").decode().splitlines()
    assert len(slides) == 1 + 8, "test patches have none"
    assert [row.split(",")[1] for row in slides[1:4]] == ["slide_a", "slide_b", "slide_a"]


def test_meta_of_the_other_split_is_noticed_by_its_labels(folder: Path) -> None:
    """Mirrors have valid and test exchanged: as many rows, other patches."""
    meta = folder / "camelyonpatch_level_2_split_valid_meta.csv"
    swapped = meta.read_text().replace("True,True", "@").replace("True,False", "True,True")
    meta.write_text(swapped.replace("@", "True,False"))
    with pytest.raises(ArchiveError, match="speaks of other patches: 3 labels differ"):
        PcamArchive(folder, pins(folder))


def test_meta_without_slides_or_rows(folder: Path) -> None:
    meta = folder / "camelyonpatch_level_2_split_train_meta.csv"
    lines = meta.read_text().splitlines(keepends=True)
    meta.write_text("".join(lines[:-1]))
    with pytest.raises(ArchiveError, match="has 4 rows, its split has 5 patches"):
        PcamArchive(folder, pins(folder))
    meta.write_text("".join([*lines[:-1], "4,0,0\n"]))
    with pytest.raises(ArchiveError, match="row 6 has not as many fields as its header"):
        PcamArchive(folder, pins(folder))
    meta.write_text("a,b\n1,2\n")
    with pytest.raises(ArchiveError, match="column wsi missing"):
        PcamArchive(folder, pins(folder))


@pytest.mark.parametrize(
    ("name", "values", "core"),
    [
        ("x", np.zeros((5, 64, 64, 3), np.uint8), r"expected uint8 \(n, 96, 96, 3\)"),
        ("x", np.zeros((5, 96, 96, 3), np.float32), "float32"),
        ("y", np.zeros((4, 1, 1, 1), np.uint8), "labels for 5 patches"),
        ("y", np.full((5, 1, 1, 1), 2, np.uint8), "label must be 0 or 1"),
        ("z", np.zeros(5), "no dataset"),
    ],
)
def test_files_of_another_shape(folder: Path, name: str, values: np.ndarray, core: str) -> None:
    part = name if name in "xy" else "x"
    with h5py.File(folder / h5_name("train", part), "w") as file:
        file.create_dataset(name, data=values)
    with pytest.raises(ArchiveError, match=core):
        PcamArchive(folder, pins(folder))


def test_torn_gz_leaves_nothing_unpacked(tmp_path: Path) -> None:
    folder = write_pcam(tmp_path / "pcam", gz=True)
    torn = folder / f"{h5_name('valid', 'x')}.gz"
    torn.write_bytes(torn.read_bytes()[:-200])
    with pytest.raises(ArchiveError, match="truncated or corrupt gzip"):
        PcamArchive(folder, pins(folder))
    assert [f.name for f in (tmp_path / "cache").iterdir()] == ["locks"]


def test_what_a_killed_process_unpacked_is_cleared_by_the_next(tmp_path: Path) -> None:
    """Catches 8 GB of another archive staying in .cache for ever."""
    left = tmp_path / "cache" / "pcam"
    left.mkdir(parents=True)
    (left / "other.h5").write_bytes(b"x")
    folder = write_pcam(tmp_path / "pcam", gz=True)
    archive = PcamArchive(folder, pins(folder))
    assert left.is_dir()
    assert not (left / "other.h5").exists()
    archive.close()
    assert not left.exists()


def test_unpacking_is_announced(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Catches minutes without a word while 7 GB are written."""
    folder = write_pcam(tmp_path / "pcam", gz=True, splits={"train": 4})
    with caplog.at_level("INFO", logger="hcd.ingest"):
        PcamArchive(folder, pins(folder)).close()
    assert any(f"unpacking {h5_name('train', 'x')}.gz" in m for m in caplog.messages)


def test_gz_that_unpacks_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pcam, "_MAX_UNPACKED_BYTES", 1_000_000)
    folder = write_pcam(tmp_path / "pcam", gz=True)
    bomb = folder / f"{h5_name('train', 'x')}.gz"
    bomb.write_bytes(gzip.compress(bytes(3_000_000)))
    with pytest.raises(ArchiveError, match="archive too large"):
        PcamArchive(folder, pins(folder))


def test_incomplete_folders(folder: Path) -> None:
    (folder / h5_name("valid", "y")).unlink()
    with pytest.raises(ArchiveError, match=r"valid_y\.h5 missing"):
        PcamArchive(folder, pins(folder))
    for split in ("train", "valid"):
        (folder / h5_name(split, "x")).unlink()
        (folder / h5_name(split, "y")).unlink(missing_ok=True)
    with pytest.raises(ArchiveError, match=r"train_x\.h5 missing"):
        PcamArchive(folder, pins(folder))
