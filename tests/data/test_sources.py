"""One contract for every source of patches; tables of slides; inputs of predict; the download."""

from __future__ import annotations

import importlib.util
import io
import logging
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from requests import ConnectionError, HTTPError, Response

from src import paths
from src.data.archives import ArchiveError
from src.data.inventory import TableError
from src.data.patches import open_pixels, read_patches
from src.data.sources import (
    KAGGLE_ARCHIVE,
    SOURCES,
    DownloadError,
    InputError,
    batches,
    download_archive,
    kaggle_client,
    open_archive,
    open_input,
)
from tests.data.archives import (
    ingest,
    patch_id,
    pixels_of,
    table,
    tiny_files,
    write_archive,
    write_zip,
)
from tests.data.pcam import pins, write_pcam
from tests.tracking.support import patches


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


LOG = logging.getLogger("test.download")


class Client:
    """Kaggle's client as far as it is used: writes a zip, or raises."""

    def __init__(self, error: Exception | None = None, *, kept: float = 1.0) -> None:
        self.error = error
        self.kept = kept
        self.calls = 0

    def authenticate(self) -> None:
        pass

    def competition_download_files(
        self,
        competition: str,
        path: str,
        force: bool,  # noqa: ARG002
        quiet: bool,  # noqa: ARG002
    ) -> None:
        self.calls += 1
        if self.error:
            raise self.error
        archive = write_zip(Path(path) / f"{competition}.zip", tiny_files())
        data = archive.read_bytes()
        archive.write_bytes(data[: int(self.kept * len(data))])


def answered(status: int) -> HTTPError:
    response = Response()
    response.status_code = status
    return HTTPError(f"{status} from Kaggle", response=response)


def test_archive_arrives_whole_and_only_once(tmp_path: Path) -> None:
    client = Client()
    archive = download_archive(tmp_path / "source", client, LOG)
    assert [f.name for f in archive.parent.iterdir()] == [KAGGLE_ARCHIVE]
    assert download_archive(tmp_path / "source", client, LOG) == archive
    assert client.calls == 1


@pytest.mark.parametrize(
    ("error", "core"),
    [
        (answered(401), "export KAGGLE_API_TOKEN"),
        (answered(403), "accept the competition's rules at https://"),
        (answered(500), "try later"),
        (ConnectionError("no route"), "check the network"),
    ],
)
def test_refusals_say_what_to_do(tmp_path: Path, error: Exception, core: str) -> None:
    with pytest.raises(DownloadError, match=core):
        download_archive(tmp_path, Client(error), LOG)
    assert not (tmp_path / KAGGLE_ARCHIVE).exists()


@pytest.mark.parametrize("damage", ["torn", "flipped"])
def test_damaged_download_is_fetched_anew(tmp_path: Path, damage: str) -> None:
    """Catches one damaged byte of 6 GB that stays: the client skips a file of the right size."""

    class Skipping(Client):
        def competition_download_files(self, competition: str, path: str, **options: bool) -> None:
            archive = Path(path) / f"{competition}.zip"
            if archive.exists():
                return
            super().competition_download_files(competition, path, **options)
            if damage == "flipped" and self.calls == 1:
                data = bytearray(archive.read_bytes())
                data[len(data) // 2] ^= 1
                archive.write_bytes(data)

    client = Skipping(kept=0.5 if damage == "torn" else 1.0)
    with pytest.raises(ArchiveError, match=r"download is damaged, and deleted: .*; run again"):
        download_archive(tmp_path, client, LOG)
    assert not (tmp_path / KAGGLE_ARCHIVE).exists()
    client.kept = 1.0
    assert download_archive(tmp_path, client, LOG).is_file()
    assert client.calls == 2


def test_damaged_archive_is_not_deleted_but_named(tmp_path: Path) -> None:
    """Catches a tracked archive replaced without a word, and a message that helps nobody."""
    (tmp_path / KAGGLE_ARCHIVE).write_bytes(b"PK torn")
    with pytest.raises(ArchiveError, match=rf"delete .*{KAGGLE_ARCHIVE} and run again"):
        download_archive(tmp_path, Client(), LOG)
    assert (tmp_path / KAGGLE_ARCHIVE).read_bytes() == b"PK torn"


def test_without_the_client_one_line_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(DownloadError, match="run: make data"):
        kaggle_client()


def test_without_credentials_one_line_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The real client, where it is installed (make data): it must neither print nor exit."""
    if importlib.util.find_spec("kaggle") is None:  # importing it prints
        pytest.skip("kaggle is not installed")
    for name in ("KAGGLE_API_TOKEN", "KAGGLE_USERNAME", "KAGGLE_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("KAGGLE_CONFIG_DIR", str(tmp_path))
    with pytest.raises(DownloadError, match="no Kaggle credentials; create a token"):
        kaggle_client()
    assert capfd.readouterr().out == ""
