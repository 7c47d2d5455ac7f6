"""The archive ``sample`` writes: layout, bytes, agreement of its files."""

from __future__ import annotations

import csv
import hashlib
import io
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from src.drawing import archive as archive_module
from src.drawing.archive import write_archive
from src.drawing.patches import draw_chunk
from src.drawing.plan import SubsetPlan, plan_subset


def plans(seed: int) -> dict[str, SubsetPlan]:
    return {
        "train": plan_subset(seed=seed, subset="train", n_patches=60, n_slides=3),
        "test": plan_subset(seed=seed, subset="test", n_patches=20, n_slides=2),
    }


def rows(archive: zipfile.ZipFile, name: str) -> list[list[str]]:
    return list(csv.reader(io.StringIO(archive.read(name).decode())))


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sample") / "sample.zip"
    write_archive(path, **plans(seed=1), workers=1)
    return path


@pytest.fixture
def archive(path: Path):
    with zipfile.ZipFile(path) as opened:
        yield opened


def test_layout_is_kaggles(archive: zipfile.ZipFile):
    """Catches a folder, file or suffix that ingest wouldn't look for."""
    folders = [name.rpartition("/")[0] for name in archive.namelist()]
    assert folders.count("train") == 60
    assert folders.count("test") == 20
    assert {name for name in archive.namelist() if not name.endswith(".tif")} == {
        "train_labels.csv",
        "sample_submission.csv",
        "slides.csv",
    }
    assert len(set(archive.namelist())) == 83


def test_images_are_uncompressed_rgb_tiffs_with_the_drawn_pixels(archive: zipfile.ZipFile):
    """Catches channels swapped, compression, or a patch stored under another's id."""
    chunk = next(plans(seed=1)["train"].chunks())
    expected = draw_chunk(chunk).pixels
    for patch_id, pixels in zip(chunk.ids(), expected, strict=True):
        image = Image.open(io.BytesIO(archive.read(f"train/{patch_id}.tif")), formats=["TIFF"])
        assert (image.mode, image.size, image.info["compression"]) == ("RGB", (96, 96), "raw")
        np.testing.assert_array_equal(np.asarray(image), pixels)


def test_labels_and_slides_name_each_train_image_once(archive: zipfile.ZipFile):
    """Catches labels that shift against ids."""
    train = plans(seed=1)["train"]
    images = {Path(name).stem for name in archive.namelist() if name.startswith("train/")}
    header, *labels = rows(archive, "train_labels.csv")
    assert header == ["id", "label"]
    assert dict(labels) == dict(zip(train.ids(), map(str, train.labels), strict=True))
    assert {patch_id for patch_id, _ in labels} == images
    header, *slides = rows(archive, "slides.csv")
    assert header == ["id", "slide"]
    assert dict(slides) == dict(zip(train.ids(), train.slide_names(), strict=True))


def test_submission_names_each_test_image_once_in_an_order_of_its_own(archive: zipfile.ZipFile):
    """Catches code that relies on the order of files or ids, by never giving it that order."""
    files = [Path(name).stem for name in archive.namelist() if name.startswith("test/")]
    header, *lines = rows(archive, "sample_submission.csv")
    ids = [patch_id for patch_id, _ in lines]
    assert header == ["id", "label"]
    assert {label for _, label in lines} == {"0"}
    assert sorted(ids) == sorted(files)
    assert ids != files
    assert ids != sorted(ids)


def test_same_seed_same_bytes_on_any_number_of_processes(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Catches dates in the zip, and chunks that arrive in the order they are finished."""
    monkeypatch.setattr(archive_module, "_MIN_PATCHES_PER_PROCESS", 1)
    monkeypatch.setattr(archive_module, "_CHUNKS_AHEAD", 1)  # the third chunk has to wait
    write_archive(tmp_path / "again.zip", **plans(seed=1), workers=2)
    assert digest(tmp_path / "again.zip") == digest(path)


def test_another_seed_gives_other_patches(path: Path, tmp_path: Path):
    """Catches a seed that isn't used."""
    write_archive(tmp_path / "other.zip", **plans(seed=2), workers=1)
    with zipfile.ZipFile(tmp_path / "other.zip") as other, zipfile.ZipFile(path) as first:
        pixels = [a.read(a.namelist()[0]) for a in (other, first)]
    assert pixels[0] != pixels[1]


def test_progress_counts_every_patch(tmp_path: Path):
    """Catches a bar that stops short of its total."""
    counts: list[int] = []
    write_archive(tmp_path / "sample.zip", **plans(seed=1), workers=1, advance=counts.append)
    assert sum(counts) == 80


def test_a_failed_write_leaves_the_old_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Catches writing in place: half an archive under the real name."""
    (tmp_path / "sample.zip").write_bytes(b"old")

    def fail(_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(archive_module, "encode_chunk", fail)
    with pytest.raises(OSError, match="no space"):
        write_archive(tmp_path / "sample.zip", **plans(seed=1), workers=1)
    assert [file.name for file in tmp_path.iterdir()] == ["sample.zip"]
    assert (tmp_path / "sample.zip").read_bytes() == b"old"


def test_help_loads_neither_tensorflow_nor_mlflow():
    """Catches heavy imports at the top: `--help` must answer at once."""
    code = (
        "import sys, src.sample\n"
        "print(sorted({'tensorflow', 'mlflow', 'sklearn', 'pandas'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
