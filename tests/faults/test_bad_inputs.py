"""Rows 1 to 51 of BAD_INPUTS: each bad archive ends in one line and leaves nothing behind."""

import logging
import os
import shutil
import stat
import struct
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image, TiffImagePlugin

import src.ingest
from src import paths
from src.data import packing
from src.data.patches import open_pixels, read_patches
from src.params import Params, load_params
from src.system.cli import run
from src.system.durable import read_json
from tests.data.archives import (
    Files,
    patch_id,
    pixels_of,
    saved,
    table,
    tiff,
    tiny_files,
    write_archive,
    write_folder,
    write_zip,
)

KINDS = ("zip", "folder")
TRAIN_IMAGE = f"train/{patch_id(1)}.tif"
TEST_IMAGE = f"test/{patch_id(101)}.tif"
PREVIOUS = {"train.npy": b"previous pixels", "manifest.json": b"{}"}

Break = Callable[[Files], None]


class Project:
    """A project root in a temporary folder, with an earlier ingest in ``data/ingest``."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        self.ingested = root / "data" / "ingest"
        self.max_bad = 0
        write_folder(self.ingested, PREVIOUS)
        monkeypatch.setattr(paths, "ROOT", root)
        monkeypatch.setattr(paths, "INGEST", self.ingested)
        monkeypatch.setattr(src.ingest, "load_params", self._params)
        monkeypatch.setattr(sys, "argv", ["ingest"])
        self._shipped = load_params()
        self.archive = "archive.zip"

    def _params(self) -> Params:
        ingest = self._shipped.ingest.model_copy(
            update={"archive": self.archive, "max_bad": self.max_bad}
        )
        return self._shipped.model_copy(update={"ingest": ingest})

    def ingest(self, archive: Path) -> object:
        """Run the stage on ``archive`` as the command does; return what it exits with."""
        self.archive = str(archive.relative_to(self.root))
        with pytest.raises(SystemExit) as exit_:
            run(src.ingest.main)
        return exit_.value.code

    def refuse(self, archive: Path) -> str:
        """The one line the stage ends in; it must leave all of ``data`` as it was."""
        line = self.ingest(archive)
        # sys.exit(text) prints the text on stderr and exits with 1
        assert isinstance(line, str)
        assert len(line.splitlines()) == 1
        assert {f.name: f.read_bytes() for f in self.ingested.iterdir()} == PREVIOUS
        assert [f.name for f in self.ingested.parent.iterdir()] == ["ingest"]
        return line

    def accept(self, archive: Path) -> pd.DataFrame:
        assert self.ingest(archive) == 0
        assert [f.name for f in self.ingested.parent.iterdir()] == ["ingest"]
        return read_patches(self.ingested).set_index("id")


@pytest.fixture
def project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[Project]:
    log = logging.getLogger("hcd")
    handlers, propagate = log.handlers[:], log.propagate
    yield Project(tmp_path, monkeypatch)
    log.handlers[:], log.propagate = handlers, propagate
    assert capfd.readouterr().err == ""  # the line itself is printed by the interpreter's exit


def drop(prefix: str) -> Break:
    def change(files: Files) -> None:
        for name in [name for name in files if name.startswith(prefix)]:
            del files[name]

    return change


def put(name: str, data: bytes) -> Break:
    return lambda files: files.__setitem__(name, data)


def labels(*rows: tuple[object, object], header: str = "id,label") -> Break:
    """``train_labels.csv`` with these rows, the rest as it should be."""

    def change(files: Files) -> None:
        given = {row[0] for row in rows}
        rest = [(patch_id(n), n % 2) for n in range(1, 7) if patch_id(n) not in given]
        files["train_labels.csv"] = table(header, [*rows, *rest])

    return change


def recode(change: Callable[[bytes], bytes], name: str = "train_labels.csv") -> Break:
    return lambda files: files.__setitem__(name, change(files[name]))


ONE = patch_id(1)
ARCHIVE_ROWS = [
    pytest.param(drop("train/"), "train folder missing", id="04-no-train-folder"),
    pytest.param(drop("test/"), "test folder missing", id="06-no-test-folder"),
    pytest.param(
        drop(TEST_IMAGE), f"test set incomplete: 1 id missing, first: {patch_id(101)}", id="07-gap"
    ),
    pytest.param(
        put(f"test/{patch_id(200)}.tif", tiff(pixels_of(200))),
        f"unexpected id in test: {patch_id(200)}",
        id="08-unexpected-test-image",
    ),
    pytest.param(drop("train_labels.csv"), "labels file not found", id="09-no-labels"),
    pytest.param(put("train_labels.csv", b""), "labels file is empty", id="10-empty-labels"),
    pytest.param(
        put("train_labels.csv", b"id,label\n"), "labels file has no rows", id="11-header-only"
    ),
    pytest.param(
        labels(header="Id,Label"), "expected columns id,label; got Id,Label", id="12-capitals"
    ),
    pytest.param(
        recode(lambda data: data.replace(b"\n", b",x\n")), "unexpected column", id="13-third-column"
    ),
    pytest.param(
        recode(lambda data: data.replace(b"\n", b",x\n").replace(b"label,x", b"label")),
        "unexpected column",
        id="13-third-field",
    ),
    pytest.param(
        recode(lambda data: data.replace(b",", b";")),
        "expected columns id,label; got id;label",
        id="15-semicolons",
    ),
    pytest.param(
        recode(lambda data: data.decode().encode("utf-16")), "not UTF-8", id="16-utf-16-bom"
    ),
    pytest.param(
        recode(lambda data: data.decode().encode("utf-16-le")), "not UTF-8", id="16-utf-16-no-bom"
    ),
    pytest.param(labels((ONE, 1), (ONE, 1)), f"duplicate id {ONE}", id="17-duplicate"),
    pytest.param(
        labels((ONE, 1), (ONE, 0)), f"conflicting labels for id {ONE}", id="18-conflicting"
    ),
    pytest.param(labels((ONE, 2)), "label must be 0 or 1: row 2", id="19-label-2"),
    pytest.param(labels((ONE, -1)), "label must be 0 or 1: row 2", id="19-label-minus-1"),
    pytest.param(labels((ONE, "1.0")), "label must be integer 0 or 1", id="20-decimal"),
    pytest.param(labels((ONE, " 1")), "label must be integer 0 or 1", id="20-space"),
    pytest.param(labels((ONE, "True")), "label must be integer 0 or 1", id="20-true"),
    pytest.param(labels((ONE, "")), f"label missing for id {ONE}", id="21-blank"),
    pytest.param(
        labels(*((patch_id(n), 0) for n in range(1, 7))), "need both classes", id="22-one-class"
    ),
    pytest.param(labels(("../x", 1)), "invalid id '../x'", id="23-path"),
    pytest.param(labels(("A" * 40, 1)), "invalid id", id="24-upper-case"),
    pytest.param(labels(("a" * 39, 1)), "invalid id", id="24-39-digits"),
    pytest.param(labels((f"{ONE}.tif", 1)), "invalid id", id="24-with-ending"),
    pytest.param(
        put(f"train/{'A' * 40}.tif", tiff(pixels_of(9))), "invalid id", id="24-upper-case-image"
    ),
    pytest.param(
        put("sample_submission.csv", b"id,label\n../x,0\n"), "invalid id", id="24-submission"
    ),
    pytest.param(drop(TRAIN_IMAGE), f"image missing for id {ONE}", id="25-labelled-without-image"),
    pytest.param(
        put(f"train/{patch_id(9)}.tif", tiff(pixels_of(9))),
        f"label missing for image train/{patch_id(9)}",
        id="26-image-without-label",
    ),
    pytest.param(
        put(f"train/{patch_id(102)}.tif", tiff(pixels_of(9))),
        f"label missing for image train/{patch_id(102)}",
        id="26-test-image-in-train",
    ),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("change", "core"), ARCHIVE_ROWS)
def test_archive_is_refused(project: Project, kind: str, change: Break, core: str) -> None:
    """Catches an archive whose tables and images disagree getting through."""
    files = tiny_files()
    change(files)
    assert core in project.refuse(write_archive(kind, project.root, files))


@pytest.mark.parametrize("kind", KINDS)
def test_id_in_both_subsets_is_refused(project: Project, kind: str) -> None:
    """Catches a labelled patch that is also to be predicted."""
    files = tiny_files()
    files |= {f"test/{ONE}.tif": files[TRAIN_IMAGE]}
    files["sample_submission.csv"] += f"{ONE},0\n".encode()
    assert f"duplicate id {ONE}" in project.refuse(write_archive(kind, project.root, files))


def test_row_01_archive_missing(project: Project) -> None:
    line = project.refuse(project.root / "nowhere.zip")
    assert f"archive not found: {project.root / 'nowhere.zip'}; set ingest.archive" in line


def test_row_02_folder_of_something_else(project: Project) -> None:
    folder = write_folder(project.root / "holiday", {"beach.jpg": b"\xff\xd8\xff"})
    assert f"not a Kaggle-layout folder: {folder}" in project.refuse(folder)


@pytest.mark.parametrize("locked", ["archive.zip", "archive/train", f"archive/{TRAIN_IMAGE}"])
def test_row_03_unreadable(monkeypatch: pytest.MonkeyPatch, locked: str) -> None:
    """Catches a traceback where the user may not read the archive or one image in it."""
    # imported beforehand, as the interpreter's own files may be root's alone; and not below
    # tmp_path, whose parents only their owner may enter
    assert packing
    root = Path(tempfile.mkdtemp(prefix="hcd-", dir="/tmp"))
    try:
        project = Project(root, monkeypatch)
        kind = "zip" if locked.endswith(".zip") else "folder"
        archive = write_archive(kind, root, tiny_files())
        monkeypatch.setattr(paths, "CACHE", root / ".cache")
        (root / ".cache").mkdir()
        for path in (root, root / "data", root / ".cache", project.ingested):
            path.chmod(0o777)
        (root / locked).chmod(0)
        with as_nobody():
            line = project.refuse(archive)
        assert f"permission denied reading {root / locked}" in line
    finally:
        (root / locked).chmod(0o700)
        shutil.rmtree(root)


@pytest.mark.parametrize("locked", ["data", ".cache"])
def test_data_that_may_not_be_written(monkeypatch: pytest.MonkeyPatch, locked: str) -> None:
    """Catches a traceback where the folder data or .cache belongs to somebody else."""
    assert packing  # imported beforehand: see row 3
    root = Path(tempfile.mkdtemp(prefix="hcd-", dir="/tmp"))
    try:
        project = Project(root, monkeypatch)
        archive = write_archive("zip", root, tiny_files())
        monkeypatch.setattr(paths, "CACHE", root / ".cache")
        (root / ".cache").mkdir()
        for path in (root, root / "data", root / ".cache", project.ingested):
            path.chmod(0o777)
        (root / locked).chmod(0o555)
        with as_nobody():
            line = project.refuse(archive)
        assert f"permission denied: {root / locked}" in line
    finally:
        shutil.rmtree(root)


def test_full_disk(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches pyarrow's own error for the table, after the pixels just fitted."""
    write_table = pd.DataFrame.to_parquet

    def write(frame: pd.DataFrame, path: Path, **options: object) -> None:
        assert path.name == "patches.parquet"
        write_table(frame, "/dev/full", **options)

    monkeypatch.setattr(pd.DataFrame, "to_parquet", write)
    archive = write_zip(project.root / "archive.zip", tiny_files())
    assert f"disk full: writing {project.ingested}" in project.refuse(archive)


class as_nobody:
    """Without root's right to read everything."""

    def __enter__(self) -> None:
        self._user = os.geteuid()
        if self._user == 0:
            os.seteuid(65534)

    def __exit__(self, *_: object) -> None:
        os.seteuid(self._user)


@pytest.mark.parametrize("kind", KINDS)
def test_row_05_train_empty(project: Project, kind: str) -> None:
    files = tiny_files()
    drop("train/")(files)
    archive = write_archive(kind, project.root, files | {"train/readme.txt": b""})
    assert "no .tif files in train" in project.refuse(archive)


@pytest.mark.parametrize("kind", KINDS)
def test_row_14_bom_and_crlf_give_the_same_result(project: Project, kind: str) -> None:
    """Catches an id column named '\\ufeffid' and labels that end in a carriage return."""
    files = tiny_files()
    clean = project.accept(write_archive(kind, project.root, files))
    for name in ("train_labels.csv", "sample_submission.csv"):
        files[name] = b"\xef\xbb\xbf" + files[name].replace(b"\n", b"\r\n")
    other = project.accept(write_archive(kind, project.root, files))
    pd.testing.assert_frame_equal(other, clean)


def grey(mode: str) -> bytes:
    return saved(Image.new(mode, (96, 96)))


def two_pages() -> bytes:
    page = Image.fromarray(pixels_of(1))
    return saved(page, save_all=True, append_images=[page])


SOUND = tiff(pixels_of(1))
IMAGE_ROWS = [
    pytest.param(b"", "empty image file", id="27-empty"),
    pytest.param(SOUND[: len(SOUND) // 2], "truncated or corrupt TIFF", id="28-half"),
    pytest.param(SOUND[:-1], "truncated or corrupt TIFF", id="28-last-byte"),
    pytest.param(SOUND[:3], "truncated or corrupt TIFF", id="29-3-bytes"),
    pytest.param(SOUND[:6], "truncated or corrupt TIFF", id="29-6-bytes"),
    pytest.param(SOUND[:60], "truncated or corrupt TIFF", id="29-directory"),
    pytest.param(b"<!DOCTYPE html><html></html>", "not a TIFF", id="31-html"),
    pytest.param(
        saved(Image.fromarray(pixels_of(1)), "PNG"), "format PNG, expected TIFF", id="32-png"
    ),
    pytest.param(
        saved(Image.fromarray(pixels_of(1)), "JPEG"), "format JPEG, expected TIFF", id="32-jpeg"
    ),
    pytest.param(
        tiff(np.zeros((96, 95, 3), np.uint8), width=95),
        "size (95, 96), expected (96, 96)",
        id="33-narrow",
    ),
    pytest.param(grey("L"), "mode L, expected RGB", id="34-greyscale"),
    pytest.param(grey("RGBA"), "mode RGBA, expected RGB", id="35-rgba"),
    pytest.param(grey("CMYK"), "mode CMYK, expected RGB", id="36-cmyk"),
    pytest.param(grey("P"), "mode P, expected RGB", id="37-palette"),
    pytest.param(grey("I;16"), "mode I;16, expected RGB", id="38-16-bit"),
    pytest.param(grey("F"), "mode F, expected RGB", id="39-float"),
    pytest.param(two_pages(), "2 frames, expected 1", id="40-two-pages"),
    pytest.param(tiff(width=20_000, height=20_000), "image too large", id="41-400-Mpx"),
    pytest.param(tiff(width=10_000, height=10_000), "image too large", id="42-100-Mpx"),
    pytest.param(tiff(pixels_of(1), next_directory=8), "truncated or corrupt TIFF", id="43-loop"),
    pytest.param(
        tiff(pixels_of(1), next_directory=10**6),
        "truncated or corrupt TIFF",
        id="43-next-directory-past-end",
    ),
    pytest.param(
        tiff(pixels_of(1), first_directory=10**9),
        "truncated or corrupt TIFF",
        id="43-first-directory-past-end",
    ),
    pytest.param(
        tiff(pixels_of(1), strip_offset=10**6),
        "truncated or corrupt TIFF",
        id="43-pixels-past-end",
    ),
]


@pytest.mark.parametrize(("data", "core"), IMAGE_ROWS)
def test_image_is_refused(project: Project, data: bytes, core: str) -> None:
    """Catches a file that is no patch being packed as one, among the labelled or the others."""
    files = tiny_files() | {TRAIN_IMAGE: data, TEST_IMAGE: data}
    archive = write_zip(project.root / "archive.zip", files)
    started_s = time.process_time()  # of this process: others may keep the machine busy
    line = project.refuse(archive)
    assert f"2 unreadable images, 0 allowed: {TRAIN_IMAGE}: {core}" in line
    assert f"{TEST_IMAGE}: {core}" in line
    assert "ingest.max_bad: 2 " in line
    assert time.process_time() - started_s < 1


@pytest.mark.parametrize(("data", "core"), IMAGE_ROWS)
def test_image_of_a_folder_is_refused(project: Project, data: bytes, core: str) -> None:
    archive = write_folder(project.root / "archive", tiny_files() | {TRAIN_IMAGE: data})
    assert f"{TRAIN_IMAGE}: {core}" in project.refuse(archive)


@pytest.mark.parametrize("side_px", [20_000, 10_000])
def test_rows_41_42_bombs_are_not_decoded(
    project: Project, monkeypatch: pytest.MonkeyPatch, side_px: int
) -> None:
    """Catches memory for 400 megapixels being taken before the size is looked at."""
    bomb = tiff(width=side_px, height=side_px)
    assert len(bomb) < 4_000
    archive = write_zip(project.root / "archive.zip", tiny_files() | {TRAIN_IMAGE: bomb})
    decode = TiffImagePlugin.TiffImageFile.load

    def load(image: TiffImagePlugin.TiffImageFile) -> object:
        return decode(image) if image.size == (96, 96) else pytest.fail("bomb decoded")

    monkeypatch.setattr(TiffImagePlugin.TiffImageFile, "load", load)
    assert "image too large" in project.refuse(archive)


@pytest.mark.parametrize(("data", "core"), IMAGE_ROWS)
def test_images_are_quarantined_and_keep_their_submission_row(
    project: Project, data: bytes, core: str
) -> None:
    """Catches rows kept from before a bad patch was dropped, and ids lost to the submission."""
    project.max_bad = 2
    files = tiny_files() | {TRAIN_IMAGE: data, TEST_IMAGE: data}
    patches = project.accept(write_zip(project.root / "archive.zip", files))
    assert ONE not in patches.index
    bad = patches.loc[patch_id(101)]
    assert (bad["row"], bad["flags"], bad["submission_order"]) == (-1, "quarantined", 2)
    assert pd.isna(bad["sha256"])
    for subset, numbers in (("train", range(2, 7)), ("test", (102, 103))):
        pixels = open_pixels(subset, project.ingested)
        assert pixels.shape == (len(numbers), 96, 96, 3)
        for n in numbers:
            np.testing.assert_array_equal(pixels[patches.loc[patch_id(n), "row"]], pixels_of(n))
    quarantined = read_json(project.ingested / "report.json")["quarantined"]
    assert [(entry["id"], entry["subset"]) for entry in quarantined] == [
        (ONE, "train"), (patch_id(101), "test"),
    ]  # fmt: skip
    assert all(core in entry["reason"] for entry in quarantined)


def test_all_unreadable_images_are_counted_at_once(project: Project) -> None:
    """Catches a person raising max_bad by one, and waiting minutes, for each of five images."""
    files = tiny_files() | {f"train/{patch_id(n)}.tif": b"" for n in range(1, 5)}
    archive = write_zip(project.root / "archive.zip", files | {TEST_IMAGE: SOUND[:100]})
    line = project.refuse(archive)
    assert "5 unreadable images, 0 allowed: " in line
    assert all(f"train/{patch_id(n)}.tif: empty image file" in line for n in (1, 2, 3))
    assert patch_id(4) not in line
    assert "set ingest.max_bad: 5 " in line
    project.max_bad = 5
    assert len(project.accept(archive)) == 9 - 4


@pytest.mark.parametrize(("max_bad", "refused"), [(1, True), (2, False)])
def test_max_bad_counts_train_and_test_together(
    project: Project, max_bad: int, refused: bool
) -> None:
    """Catches max_bad being allowed once per subset, or one too many."""
    project.max_bad = max_bad
    files = tiny_files() | {TRAIN_IMAGE: b"", TEST_IMAGE: b""}
    archive = write_zip(project.root / "archive.zip", files)
    if refused:
        assert TEST_IMAGE in project.refuse(archive)
    else:
        project.accept(archive)


def test_quarantine_may_not_leave_one_class(project: Project) -> None:
    """Catches a class lost to quarantine."""
    project.max_bad = 3
    tumour = {f"train/{patch_id(n)}.tif": b"" for n in (1, 3, 5)}
    archive = write_zip(project.root / "archive.zip", tiny_files() | tumour)
    assert "need both classes" in project.refuse(archive)


def test_damaged_zip_member_is_one_bad_image(project: Project) -> None:
    """Catches a flipped bit inside a zip getting past the member's checksum."""
    archive = write_zip(project.root / "archive.zip", tiny_files())
    with zipfile.ZipFile(archive) as sound:
        offset = sound.getinfo(TRAIN_IMAGE).header_offset
    data = bytearray(archive.read_bytes())
    data[offset + 10_000] ^= 1
    archive.write_bytes(data)
    assert f"{TRAIN_IMAGE}: truncated or corrupt zip member" in project.refuse(archive)
    project.max_bad = 1
    assert ONE not in project.accept(archive).index


def test_row_30_bit_flipped_after_ingest(project: Project) -> None:
    """Catches training on pixels that are no longer those that were checked."""
    project.accept(write_zip(project.root / "archive.zip", tiny_files()))
    with (project.ingested / "train.npy").open("r+b") as file:
        file.seek(5_000)
        byte = file.read(1)[0]
        file.seek(5_000)
        file.write(bytes([byte ^ 1]))
    with pytest.raises(SystemExit) as exit_:
        run(lambda: open_pixels("train", project.ingested) and None)
    assert "sha256 mismatch" in exit_.value.code
    assert len(exit_.value.code.splitlines()) == 1


@pytest.mark.parametrize(("level", "flag"), [(0, "blank_black"), (255, "blank_white")])
def test_row_44_constant_patch_is_kept_and_flagged(project: Project, level: int, flag: str) -> None:
    """Catches blank patches dropped, or refused for deflating to under a hundredth."""
    blank = tiff(np.full((96, 96, 3), level, np.uint8))
    archive = write_zip(project.root / "archive.zip", tiny_files() | {TRAIN_IMAGE: blank})
    with zipfile.ZipFile(archive) as members:
        info = members.getinfo(TRAIN_IMAGE)
        assert info.file_size > 100 * info.compress_size
    patches = project.accept(archive)
    assert patches.loc[ONE, "flags"] == flag
    assert (patches["flags"] != "").sum() == 1
    assert len(patches) == 9
    report = read_json(project.ingested / "report.json")
    assert report["flags"] == {flag: {"n": 1, "ids": [ONE]}}


@pytest.mark.parametrize("target", ["outside", "inside"])
def test_row_45_symlink_in_folder(project: Project, target: str) -> None:
    """Catches an image that is read from outside the archive."""
    files = tiny_files()
    image = files.pop(TRAIN_IMAGE)
    archive = write_folder(project.root / "archive", files)
    place = project.root if target == "outside" else archive
    (place / "elsewhere.tif").write_bytes(image)
    (archive / TRAIN_IMAGE).symlink_to(place / "elsewhere.tif")
    line = project.refuse(archive)
    assert "symlink not allowed" in line
    assert TRAIN_IMAGE in line


def test_row_45_symlink_in_zip(project: Project) -> None:
    files = tiny_files()
    del files[TRAIN_IMAGE]
    link = zipfile.ZipInfo(TRAIN_IMAGE)
    link.create_system = 3
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    archive = write_zip(
        project.root / "archive.zip", [*files.items(), (link, b"../../../etc/passwd")]
    )
    assert "symlink not allowed" in project.refuse(archive)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", [TRAIN_IMAGE, "train_labels.csv"])
def test_row_46_fifo(project: Project, name: str) -> None:
    """Catches waiting for ever for somebody to write into the pipe."""
    files = tiny_files()
    del files[name]
    archive = write_folder(project.root / "archive", files)
    os.mkfifo(archive / name)
    line = project.refuse(archive)
    assert "not a regular file" in line
    assert name in line


@pytest.mark.timeout(20)
def test_row_46_fifo_as_archive(project: Project) -> None:
    os.mkfifo(project.root / "archive.zip")
    assert "not a regular file" in project.refuse(project.root / "archive.zip")


def test_row_47_same_pixels_under_two_ids(project: Project) -> None:
    """Catches duplicates going unnoticed, within train and between train and test."""
    files = tiny_files()
    same = files[f"train/{patch_id(2)}.tif"]
    files |= {f"train/{patch_id(5)}.tif": same, TEST_IMAGE: same}
    patches = project.accept(write_zip(project.root / "archive.zip", files))
    flags = patches.loc[patches["flags"] != "", "flags"].to_dict()
    first = f"duplicate_of:{patch_id(2)}"
    assert flags == {patch_id(5): first, patch_id(101): first}
    assert patches.loc[patch_id(5), "sha256"] == patches.loc[patch_id(2), "sha256"]
    report = read_json(project.ingested / "report.json")
    assert report["flags"]["duplicate"]["n"] == 2


@pytest.mark.parametrize(
    "name", ["../evil", "train/../../evil", "/etc/evil", "..\\evil", "C:evil", "train//x", "./x"]
)
def test_row_48_unsafe_member(project: Project, name: str) -> None:
    archive = write_zip(project.root / "archive.zip", [*tiny_files().items(), (name, b"x")])
    assert "unsafe member" in project.refuse(archive)
    assert not (project.root.parent / "evil").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_row_49_image_over_the_cap(project: Project, kind: str) -> None:
    files = tiny_files() | {TRAIN_IMAGE: bytes(2 << 20)}
    line = project.refuse(write_archive(kind, project.root, files))
    assert "archive too large" in line
    assert TRAIN_IMAGE in line


def test_row_49_ratio_over_100(project: Project) -> None:
    """Catches a table that unpacks to a thousand times its size in the zip."""
    files = tiny_files() | {"train_labels.csv": b"id,label\n" + bytes(8 << 20)}
    line = project.refuse(write_zip(project.root / "archive.zip", files))
    assert "archive too large" in line
    assert "over 100 times" in line


def test_row_49_member_that_lies_about_its_size(project: Project) -> None:
    """Catches a small size in the directory hiding a large member."""
    archive = write_zip(project.root / "archive.zip", tiny_files() | {TRAIN_IMAGE: bytes(900_000)})
    data = archive.read_bytes()
    assert data.count(struct.pack("<I", 900_000)) == 2
    archive.write_bytes(data.replace(struct.pack("<I", 900_000), struct.pack("<I", 27_935)))
    assert "truncated or corrupt zip member" in project.refuse(archive)


@pytest.mark.parametrize("name", [TRAIN_IMAGE, TRAIN_IMAGE.upper(), "Train_Labels.csv"])
def test_row_50_duplicate_member(project: Project, name: str) -> None:
    """Catches the second of two members winning over the first without a word."""
    archive = write_zip(project.root / "archive.zip", [*tiny_files().items(), (name, b"x")])
    assert "duplicate member" in project.refuse(archive)


def test_row_50_case_colliding_files(project: Project) -> None:
    archive = write_folder(project.root / "archive", tiny_files())
    (archive / "TRAIN_LABELS.csv").write_bytes(b"x")
    if len({f.name for f in archive.glob("*.csv")}) < 3:
        pytest.skip("this file system can't hold both names")
    assert "duplicate member" in project.refuse(archive)


@pytest.mark.parametrize("kept", [0.0, 0.01, 0.5, 0.999])
def test_row_51_truncated_zip(project: Project, kept: float) -> None:
    archive = write_zip(project.root / "archive.zip", tiny_files())
    data = archive.read_bytes()
    archive.write_bytes(data[: int(len(data) * kept)])
    assert f"archive incomplete: {archive}" in project.refuse(archive)


def test_row_51_hole_in_the_middle(project: Project) -> None:
    """Catches a download that lost a block but kept the directory at its end."""
    archive = write_zip(project.root / "archive.zip", tiny_files())
    data = archive.read_bytes()
    archive.write_bytes(data[:40_000] + data[90_000:])
    assert "archive incomplete" in project.refuse(archive)


def test_file_that_is_no_zip(project: Project) -> None:
    archive = project.root / "archive.zip"
    archive.write_bytes(b"<html>Please sign in</html>")
    assert "not a zip archive" in project.refuse(archive)


@pytest.fixture(scope="module")
def real_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project, to run its commands in without touching its data."""
    root = tmp_path_factory.mktemp("project")
    shutil.copytree(
        Path(src.ingest.__file__).parent,
        root / "src",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    text = Path(paths.PARAMS).read_text()
    (root / "params.yaml").write_text(text.replace("data/source/sample.zip", "archive.zip"))
    return root


def command(root: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "src.ingest"], cwd=root, capture_output=True, text=True, timeout=60
    )


def test_a_bad_archive_under_dvc_leaves_the_previous_ingest(tmp_path: Path) -> None:
    """Catches DVC deleting a good data/ingest before the stage has looked at the new archive."""
    for name in ("src", "dvc.yaml", ".dvc/config", "data/extra/README.md"):
        target = tmp_path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        source = paths.ROOT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, target)
    text = Path(paths.PARAMS).read_text()
    (tmp_path / "params.yaml").write_text(text.replace("data/source/sample.zip", "archive.zip"))
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    hidden = ("DVC_ROOT", "DVC_STAGE", "DVC_EXP_NAME")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"

    def repro() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "dvc", "repro", "--single-item", "ingest"],
            cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120,
        )  # fmt: skip

    write_zip(tmp_path / "archive.zip", tiny_files())
    good = repro()
    assert good.returncode == 0, good.stderr
    before = {f.name: f.read_bytes() for f in (tmp_path / "data" / "ingest").iterdir()}
    write_zip(tmp_path / "archive.zip", tiny_files() | {"train_labels.csv": b""})
    bad = repro()
    assert bad.returncode != 0
    assert "error: labels file is empty" in bad.stderr
    assert {f.name: f.read_bytes() for f in (tmp_path / "data" / "ingest").iterdir()} == before


BAD_PARAMS = {
    52: ("max_bad: 0", "max_bad: -1", "params.yaml: ingest.max_bad must be ≥ 0 (got -1)"),
    53: ("max_bad: 0", "max_bad: !!python/object/apply:os.getcwd []", "params.yaml: unsafe YAML"),
}


@pytest.mark.parametrize("row", BAD_PARAMS)
def test_command_refuses_bad_params_in_one_line(real_root: Path, row: int) -> None:
    """Catches a traceback of pydantic or of the YAML reader in the spelling people use."""
    old, new, core = BAD_PARAMS[row]
    params = real_root / "params.yaml"
    sound = params.read_text()
    assert old in sound
    params.write_text(sound.replace(old, new))
    try:
        ended = command(real_root)
    finally:
        params.write_text(sound)
    assert ended.returncode == 1
    (line,) = ended.stderr.splitlines()
    assert core in line


@pytest.mark.parametrize(
    ("row", "core"),
    [
        (1, "archive not found"),
        (10, "labels file is empty"),
        (28, "truncated or corrupt TIFF"),
        (42, "image too large"),
        (51, "archive incomplete"),
    ],
)
def test_command_ends_in_one_line(real_root: Path, row: int, core: str) -> None:
    """Catches a traceback, a warning on stderr or exit code 0 in the spelling people use."""
    archive = real_root / "archive.zip"
    archive.unlink(missing_ok=True)
    changed = {
        10: {"train_labels.csv": b""},
        28: {TRAIN_IMAGE: SOUND[:9_000]},
        42: {TRAIN_IMAGE: tiff(width=10_000, height=10_000)},
    }
    if row > 1:
        write_zip(archive, tiny_files() | changed.get(row, {}))
    if row == 51:
        archive.write_bytes(archive.read_bytes()[:-30])
    ended = command(real_root)
    assert ended.returncode == 1
    (line,) = ended.stderr.splitlines()
    assert core in line
    assert not list((real_root / "data").glob("*")) if (real_root / "data").exists() else True


def test_command_succeeds_without_a_word_on_stderr(real_root: Path) -> None:
    write_zip(real_root / "archive.zip", tiny_files())
    ended = command(real_root)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "ingest: train 6 patches, 50.0 % tumour, slides unknown" in ended.stdout
    assert len(read_patches(real_root / "data" / "ingest")) == 9
    shutil.rmtree(real_root / "data")
