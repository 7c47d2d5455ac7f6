"""Any input: the same patches in every kind, in a known order, bad ones told apart."""

import io
import zipfile

import numpy as np
import pytest
from PIL import Image

from src.data.archives import ArchiveError
from src.data.patch_inputs import InputError, batches, open_input
from tests.tracking.support import patches

PIXELS = patches(5)
NAMES = ["a.tif", "b.png", "c.tiff", "d.TIF", "sub/e.png"]


def image_bytes(pixels: np.ndarray, name: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG" if name.lower().endswith("png") else "TIFF")
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "patches"
    for name, pixels in zip(NAMES, PIXELS, strict=True):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(image_bytes(pixels, name))
    (root / "notes.txt").write_text("no patch")
    (root / "._a.tif").write_text("what a Mac leaves")
    return root


@pytest.mark.parametrize("name", ["P.NPY", "LIST.CSV"])
def test_kind_is_known_in_capitals_too(folder, name):
    """A kind that is 'unknown' for the way its name is spelt."""
    if name == "P.NPY":
        np.save(folder / "p.npy", PIXELS)
        (folder / "p.npy").rename(folder / name)
    else:
        (folder / name).write_text("path\na.tif\n")
    assert len(open_input(folder / name).ids) == (5 if name == "P.NPY" else 1)


def zipped(folder):
    path = folder.parent / "patches.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in reversed([*NAMES, "notes.txt", "._a.tif"]):
            archive.write(folder / name, name)
    return path


def listed(folder):
    path = folder / "list.csv"
    path.write_text("path\n" + "".join(f"{name}\n" for name in NAMES))
    return path


def read_all(path, batch_size=2):
    source = open_input(path)
    found = list(batches(source, batch_size=batch_size))
    assert [batch.n for batch in found] == [2, 2, 1]
    return list(source.ids), np.concatenate([batch.pixels for batch in found])


@pytest.mark.parametrize("kind", [lambda folder: folder, zipped, listed])
def test_every_kind_gives_the_same_patches_by_stem(kind, folder):
    """Catches rows joined to the wrong ids: the order of a zip is not that of its names."""
    ids, pixels = read_all(kind(folder))
    assert ids == ["a", "b", "c", "d", "e"]
    np.testing.assert_array_equal(pixels, PIXELS)


def test_array_gives_rows(tmp_path):
    np.save(tmp_path / "p.npy", PIXELS)
    ids, pixels = read_all(tmp_path / "p.npy")
    assert ids == ["0", "1", "2", "3", "4"]
    np.testing.assert_array_equal(pixels, PIXELS)


def test_bad_files_keep_their_place(folder):
    """Catches later patches moved up beside the id of the bad one."""
    (folder / "a.tif").write_bytes(b"II*\0 cut")
    (folder / "c.tiff").unlink()
    (folder / "c.tiff").symlink_to(folder / "b.png")
    first, second = batches(open_input(folder), batch_size=3)
    assert set(first.bad) == {0, 2}
    assert "symlink not allowed" in first.bad[2]
    assert first.usable.tolist() == [1]
    np.testing.assert_array_equal(first.pixels, PIXELS[1:2])
    assert (second.first, second.usable.tolist(), second.bad) == (3, [0, 1], {})


def test_list_may_name_ids_and_missing_files(folder):
    (folder / "list.csv").write_text("id,path\nx,a.tif\ny,gone.tif\n")
    source = open_input(folder / "list.csv")
    (batch,) = batches(source, batch_size=8)
    assert source.ids == ["x", "y"]
    assert "No such file" in batch.bad[1]


def write(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    return tmp_path / name


def array(tmp_path, pixels):
    np.save(tmp_path / "p.npy", pixels)
    return tmp_path / "p.npy"


def twice(tmp_path):
    for name in ("x/1.tif", "y/1.tif"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(b"")
    return tmp_path


REFUSED = {
    "nothing there": (lambda t: t / "none", "input not found"),
    "empty folder": (lambda t: t, "no patches in"),
    "other file": (lambda t: write(t, "a.h5", b"\x89HDF"), "unknown kind of input"),
    "float": (lambda t: array(t, PIXELS.astype(np.float32)), r"float32; allowed are"),
    "other size": (lambda t: array(t, PIXELS[:, :95]), r"\(5, 95, 96, 3\) uint8"),
    "objects": (lambda t: array(t, np.array([{}], dtype=object)), "not a readable .npy"),
    "no npy": (lambda t: write(t, "p.npy", b"nothing"), "not a readable .npy"),
    "empty npy": (lambda t: write(t, "p.npy", b""), "not a readable .npy"),
    "npz": (lambda t: write(t, "p.npy", b"PK\x03\x04 and so on"), "not a readable .npy"),
    "list without path": (lambda t: write(t, "l.csv", b"file\na.tif\n"), "no column 'path'"),
    "list of nothing": (lambda t: write(t, "l.csv", b""), "no column 'path'"),
    "list with a gap": (lambda t: write(t, "l.csv", b"path,id\n,x\n"), "empty path in line 2"),
    "list not in UTF-8": (lambda t: write(t, "l.csv", b"path\n\xff\xfe.tif\n"), "can't read"),
    "id twice": (twice, "id '1' comes 2 times"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_unusable_input_is_refused_with_what_is_allowed(name, tmp_path):
    """Catches a traceback, or a table with no rows, where one line is due."""
    make, reason = REFUSED[name]
    with pytest.raises(InputError, match=reason):
        open_input(make(tmp_path))


def test_torn_zip_is_refused_as_a_whole(folder):
    path = zipped(folder)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ArchiveError, match="archive incomplete"):
        open_input(path)
