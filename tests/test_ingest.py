"""The ingest stage on sound archives, and cut short; bad ones are in tests/faults."""

import hashlib
import logging
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from src import ingest as stage
from src import paths
from src.data import sources
from src.data.measurements import MOMENT_COLUMNS
from src.data.patches import open_pixels, read_patches
from src.exploration.statistics import channel_moments, survey_channels, within_reference
from src.system.durable import read_json, verify_folder
from src.system.errors import ProjectError
from tests.data.archives import (
    ingest,
    patch_id,
    pixels_of,
    table,
    tiff,
    tiny_files,
    write_archive,
    write_zip,
)

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def zip_archive(tmp_path: Path) -> Path:
    return write_zip(tmp_path / "archive.zip", tiny_files())


def test_table_of_patches(zip_archive: Path, tmp_path: Path) -> None:
    """Catches labels, order or rows of one patch standing beside the id of another."""
    ingest(zip_archive, tmp_path / "ingest")
    patches = read_patches(tmp_path / "ingest")
    assert {name: str(dtype) for name, dtype in patches.dtypes.items()} == {
        "id": "str",
        "subset": "str",
        "row": "int64",
        "label": "Int8",
        "slide": "str",
        "sha256": "str",
        "flags": "str",
        "submission_order": "Int64",
        "phash": "UInt64",
        **dict.fromkeys(MOMENT_COLUMNS, "float32"),
    }
    assert patches["id"].tolist() == [patch_id(n) for n in (1, 2, 3, 4, 5, 6, 101, 102, 103)]
    assert patches["subset"].tolist() == ["train"] * 6 + ["test"] * 3
    assert patches["row"].tolist() == [0, 1, 2, 3, 4, 5, 0, 1, 2]
    assert patches["label"].tolist() == [1, 0, 1, 0, 1, 0, pd.NA, pd.NA, pd.NA]
    assert patches["submission_order"].tolist() == [*[pd.NA] * 6, 2, 1, 0]
    assert patches["slide"].isna().all()
    assert patches["flags"].tolist() == [""] * 9
    expected = hashlib.sha256(pixels_of(102).tobytes()).hexdigest()
    assert patches["sha256"][7] == expected


def test_folder_and_zip_give_the_same_bytes(tmp_path: Path) -> None:
    for kind in ("zip", "folder"):
        ingest(write_archive(kind, tmp_path, tiny_files()), tmp_path / f"from_{kind}")
    for name in ("train.npy", "test.npy", "patches.parquet"):
        of_zip, of_folder = (tmp_path / f"from_{kind}" / name for kind in ("zip", "folder"))
        assert of_zip.read_bytes() == of_folder.read_bytes()


def test_archive_is_neither_unpacked_nor_changed(zip_archive: Path, tmp_path: Path) -> None:
    before = zip_archive.read_bytes()
    ingest(zip_archive, tmp_path / "data" / "ingest")
    assert zip_archive.read_bytes() == before
    assert sorted(f.name for f in tmp_path.rglob("*") if f.is_file()) == [
        "archive.zip",
        "manifest.json",
        "patches.parquet",
        "report.json",
        "test.npy",
        "train.npy",
    ]
    verify_folder(tmp_path / "data" / "ingest")


def test_report(tmp_path: Path) -> None:
    """Catches counts that don't add up, and a channel mean of another channel."""
    red = np.zeros((96, 96, 3), np.uint8)
    red[..., 0] = 255
    files = tiny_files(2, 1)
    files |= {f"train/{patch_id(n)}.tif": tiff(red) for n in (1, 2)}
    files["slides.csv"] = table("id,wsi", [(patch_id(1), "s1"), (patch_id(77), "s2")])
    report = ingest(write_zip(tmp_path / "archive.zip", files), tmp_path / "ingest")
    assert report == read_json(tmp_path / "ingest" / "report.json")
    assert report["archive"]["name"] == "archive.zip"
    assert report["patches"] == {"train": 2, "test": 1}
    assert report["labels"] == {"normal": 1, "tumour": 1}
    assert report["slides"] == {
        "table": "slides.csv",
        "n_slides": 1,
        "patches_known": 1,
        "patches_unknown": 1,
        "rows_unused": 1,
    }
    assert report["channels"] == {"mean": [1, 0, 0], "std": [0, 0, 0]}
    assert report["flags"] == {"duplicate": {"n": 1, "ids": [patch_id(2)]}}
    assert report["quarantined"] == []
    sha256 = hashlib.sha256(red.tobytes()).hexdigest()
    lines = f"{patch_id(1)},{sha256},1\n{patch_id(2)},{sha256},0\n"
    assert report["digests"]["train"] == hashlib.md5(lines.encode()).hexdigest()


@pytest.mark.parametrize("header", ["id,slide", "id,wsi"])
def test_slides_reach_the_table(tmp_path: Path, header: str) -> None:
    """Catches unknown slides filled with a neighbour's."""
    files = tiny_files()
    files["slides.csv"] = table(header, [(patch_id(n), f"slide {n % 2}") for n in (1, 2, 4)])
    ingest(write_zip(tmp_path / "archive.zip", files), tmp_path / "ingest")
    slides = read_patches(tmp_path / "ingest")["slide"]
    assert slides[:4].tolist()[:2] == ["slide 1", "slide 0"]
    assert slides.isna().tolist() == [False, False, True, False, *[True] * 5]


def test_digests_follow_labels_and_pixels(tmp_path: Path) -> None:
    """Catches a data set that keeps its name when one label changes."""
    files = tiny_files()
    first = ingest(write_zip(tmp_path / "archive.zip", files), tmp_path / "ingest")["digests"]
    files["train_labels.csv"] = table("id,label", [(patch_id(n), int(n > 3)) for n in range(1, 7)])
    relabelled = ingest(write_zip(tmp_path / "archive.zip", files), tmp_path / "ingest")["digests"]
    assert relabelled["test"] == first["test"]
    assert relabelled["train"] != first["train"]
    assert all(len(digest) == 32 for digest in relabelled.values())


def test_second_ingest_replaces_the_first(zip_archive: Path, tmp_path: Path) -> None:
    folder = tmp_path / "ingest"
    ingest(zip_archive, folder)
    (folder / "leftover.npy").write_bytes(b"of an older version")
    ingest(zip_archive, folder)
    assert not (folder / "leftover.npy").exists()
    verify_folder(folder)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """Report and folder of an ingest of the real patches, where the machine has them."""
    archive = os.environ.get("HCD_REAL_ARCHIVE")
    if not archive:
        pytest.skip("set HCD_REAL_ARCHIVE to a Kaggle zip or folder")
    folder = tmp_path_factory.mktemp("real") / "ingest"
    return ingest(Path(archive), folder), folder


def test_real_archive(real: tuple[dict[str, Any], Path]) -> None:
    """Catches wrong decoding or channel order, which generated patches wouldn't show."""
    report, folder = real
    assert len(open_pixels("train", folder)) == report["patches"]["train"]
    assert report["quarantined"] == []
    # FIELD.md, trap 7; a random sample of 4,000 patches is within 0.01
    np.testing.assert_allclose(report["channels"]["mean"], [0.7024, 0.5462, 0.6965], atol=0.01)
    np.testing.assert_allclose(report["channels"]["std"], [0.2389, 0.2821, 0.2163], atol=0.01)
    n_patches = sum(report["patches"].values())
    n_flagged = sum(flag["n"] for flag in report["flags"].values())
    assert n_flagged / n_patches == pytest.approx(0.003, abs=0.001)
    if n_patches == 4_800:  # the sample in shared/data
        assert n_flagged == 14


def test_real_patches_are_like_the_reference(real: tuple[dict[str, Any], Path]) -> None:
    """Catches a verdict of explore that the real training set itself doesn't pass."""
    report, folder = real
    histogram = survey_channels(open_pixels("train", folder), advance=lambda _: None)
    moments = channel_moments(histogram)
    assert within_reference(moments) == [True, True, True]
    np.testing.assert_allclose(moments[0], report["channels"]["mean"], atol=1e-6)


INTERRUPTED = """
import sys
from pathlib import Path
from src.system.cli import run

def main() -> None:
    from tests.data.archives import ingest
    ingest(Path({archive!r}), Path({folder!r}), workers=2)

if __name__ == "__main__":
    run(main)
"""


MANY = range(1_000, 5_000)
SAME = tiff(pixels_of(1))


@pytest.fixture
def slow_ingest(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """An ingest with two decoding processes, caught while it decodes over an earlier result."""
    folder = tmp_path / "data" / "ingest"
    ingest(write_zip(tmp_path / "first.zip", tiny_files()), folder)
    files = tiny_files() | {f"train/{patch_id(n)}.tif": SAME for n in MANY}
    labels = [(patch_id(n), n % 2) for n in (*range(1, 7), *MANY)]
    files["train_labels.csv"] = table("id,label", labels)
    script = tmp_path / "script.py"
    archive = str(write_zip(tmp_path / "second.zip", files, zipfile.ZIP_STORED))
    script.write_text(INTERRUPTED.format(archive=archive, folder=str(folder)))
    process = subprocess.Popen(
        [sys.executable, str(script)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        _wait_until(lambda: len(_descendants(process.pid)) >= 3)  # resource tracker and two
        yield process, folder
    finally:
        process.kill()
        process.communicate()


def _descendants(pid: int) -> list[int]:
    lists = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for file in lists for child in file.read_text().split()]


def _wait_until(condition: object, timeout_s: float = 30) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _is_running(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rsplit(")", 1)[1].split()[0] != "Z"


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc")
def test_killed_ingest_leaves_the_previous_result(
    slow_ingest: tuple[subprocess.Popen[str], Path],
) -> None:
    """Catches a half-written store, and decoding processes that outlive their parent."""
    process, folder = slow_ingest
    children = _descendants(process.pid)
    process.send_signal(signal.SIGKILL)
    process.wait()
    verify_folder(folder)
    assert len(read_patches(folder)) == 9
    _wait_until(lambda: not any(map(_is_running, children)))


@pytest.mark.usefixtures("hears_ctrl_c")  # before the process is started
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc")
def test_ctrl_c_leaves_neither_tracebacks_nor_files(
    slow_ingest: tuple[subprocess.Popen[str], Path],
) -> None:
    """Catches tracebacks of the decoding processes, and their half-written folder."""
    process, folder = slow_ingest
    time.sleep(0.1)  # the decoding processes are importing, where nothing of ours catches it
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all of them
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert errors in ("", "interrupted\n")
    verify_folder(folder)
    assert len(read_patches(folder)) == 9
    assert [f.name for f in folder.parent.iterdir()] == ["ingest"]


class KaggleClient:
    def competition_download_files(self, competition: str, path: str, **_: bool) -> None:
        write_zip(Path(path) / f"{competition}.zip", tiny_files())


@pytest.fixture
def download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A root where ``ingest --download`` meets a Kaggle that answers."""
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    monkeypatch.setattr(paths, "SAMPLE_ARCHIVE", tmp_path / "data" / "source" / "sample.zip")
    monkeypatch.setattr(sources, "kaggle_client", KaggleClient)
    monkeypatch.setattr(stage, "configure", lambda _: None)
    monkeypatch.setattr(logging.getLogger("hcd"), "propagate", True)
    return tmp_path


def test_downloaded_archive_is_tracked(
    download: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Catches a download that DVC doesn't know: the next clone would lack the data."""
    ran: list[tuple[list[str], Path]] = []

    def run(command: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
        ran.append((command, cwd))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(stage.subprocess, "run", run)
    with caplog.at_level("INFO"):
        stage.main(download=True)
    archive = f"data/source/{sources.KAGGLE_ARCHIVE}"
    assert (download / archive).is_file()
    assert ran == [([sys.executable, "-m", "dvc", "add", archive], download)]
    assert "cp presets/kaggle.yaml params.yaml" in caplog.messages[-1]


@pytest.mark.usefixtures("download")
def test_untracked_download_says_what_is_left_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = subprocess.CompletedProcess([], 1)
    monkeypatch.setattr(stage.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(
        ProjectError, match=rf"not tracked; run: dvc add data/source/{sources.KAGGLE_ARCHIVE}"
    ):
        stage.main(download=True)
