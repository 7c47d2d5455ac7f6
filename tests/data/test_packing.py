"""Pixels on disk: the same bytes for any order of members and any number of processes."""

import random
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
import pytest

from src.data import packing
from src.data.measurements import channel_moments
from src.data.packing import PackedSubset, PackingError, pack_archive
from src.data.sources import open_archive
from tests.data.archives import Files, patch_id, pixels_of, tiny_files, write_zip

N_TRAIN, N_TEST = 23, 5


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "CHUNK_PATCHES", 4)
    monkeypatch.setattr(packing, "_MIN_PATCHES_PER_PROCESS", 1)


def pack(
    folder: Path,
    files: Files,
    *,
    workers: int = 1,
    max_bad: int = 0,
    advance: Callable[[int], None] = lambda _: None,
) -> dict[str, PackedSubset]:
    folder.mkdir()
    archive = open_archive(write_zip(folder / "archive.zip", files))
    ids_of = {subset: sorted(archive.images(subset) or []) for subset in ("train", "test")}
    return pack_archive(archive, ids_of, folder, max_bad=max_bad, workers=workers, advance=advance)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("bad", [(), (1,), (23,), (4, 5, 6, 7, 8), (1, 2, 3, 23)])
def test_rows_hold_the_pixels_of_their_id(tmp_path: Path, bad: tuple[int, ...]) -> None:
    """Catches rows shifted by one, a lost tail, and gaps closed wrongly around bad images."""
    files = tiny_files(N_TRAIN, N_TEST)
    files |= {f"train/{patch_id(n)}.tif": b"" for n in bad}
    packed = pack(tmp_path / "out", files, max_bad=len(bad))["train"]
    pixels = np.load(packed.path, mmap_mode="r")
    assert pixels.shape == (N_TRAIN - len(bad), 96, 96, 3)
    rows = [row for row in packed.rows if row >= 0]
    assert rows == list(range(N_TRAIN - len(bad)))
    for n in range(1, N_TRAIN + 1):
        row = packed.rows[n - 1]
        if n in bad:
            assert row == -1
        else:
            np.testing.assert_array_equal(pixels[row], pixels_of(n))


@pytest.mark.usefixtures("small_chunks")
def test_neither_processes_nor_order_show(tmp_path: Path) -> None:
    """Catches results that depend on who finished first or on how the zip was packed."""
    files = tiny_files(N_TRAIN, N_TEST) | {f"train/{patch_id(3)}.tif": b"broken"}
    shuffled = list(files.items())
    random.Random(1).shuffle(shuffled)
    one = pack(tmp_path / "one", files, workers=1, max_bad=1)
    three = pack(tmp_path / "three", dict(shuffled), workers=3, max_bad=1)
    for subset in ("train", "test"):
        assert one[subset].path.read_bytes() == three[subset].path.read_bytes()
        assert one[subset].digests == three[subset].digests
        assert one[subset].bad == three[subset].bad
        assert one[subset].measured.sums.tolist() == three[subset].measured.sums.tolist()
        assert one[subset].measured.squares.tolist() == three[subset].measured.squares.tolist()


@pytest.mark.usefixtures("small_chunks")
def test_first_bad_image_by_id_is_named_whoever_finds_it(tmp_path: Path) -> None:
    """Catches an error that names another image on every run."""
    files = tiny_files(N_TRAIN, N_TEST)
    files |= {f"train/{patch_id(n)}.tif": b"" for n in (20, 9, 10)}
    for workers in (1, 3):
        with pytest.raises(PackingError, match=f"train/{patch_id(9)}.tif: empty image file"):
            pack(tmp_path / str(workers), files, workers=workers)


@pytest.mark.usefixtures("small_chunks")
def test_progress_adds_up(tmp_path: Path) -> None:
    steps: list[int] = []
    pack(tmp_path / "out", tiny_files(N_TRAIN, N_TEST), advance=steps.append)
    assert sum(steps) == N_TRAIN + N_TEST


def test_channel_moments_of_four_levels() -> None:
    """Red is 0 and 2 in equal parts (mean 1, deviation 1), green always 7, blue always 255."""
    n = 96 * 96
    sums = np.array([n, 7 * n, 255 * n])
    squares = np.array([2 * n, 49 * n, 255 * 255 * n])
    mean, std = channel_moments(sums, squares, n_patches=1)
    assert mean.tolist() == [1, 7, 255]
    assert std.tolist() == [1, 0, 0]


def test_sums_match_numpy(tmp_path: Path) -> None:
    """Catches channels mixed up by the fast summation, and sums that overflow."""
    files = tiny_files(3, 1)
    packed = pack(tmp_path / "out", files)["train"]
    pixels = np.load(packed.path).astype(np.float64)
    mean, std = channel_moments(packed.measured.sums, packed.measured.squares, n_patches=3)
    np.testing.assert_allclose(mean, pixels.mean(axis=(0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(std, pixels.std(axis=(0, 1, 2)), rtol=1e-12)


def test_full_disk_is_known_before_decoding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = packing.shutil.disk_usage(tmp_path)._replace(free=100_000)
    monkeypatch.setattr(packing.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(PackingError, match="disk full"):
        pack(tmp_path / "out", tiny_files())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_disk_that_fills_up_meanwhile() -> None:
    """Catches a traceback where the disk fills up while pixels are written."""
    with pytest.raises(PackingError, match="disk full: writing /dev/full"):
        packing._write_rows(Path("/dev/full"), 0, pixels_of(1)[None])


def test_killed_process_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches waiting for ever for a decoding process that the system has killed."""

    class Broken:
        def __init__(self, *_: object, **__: object) -> None: ...

        def submit(self, *_: object) -> object:
            raise BrokenProcessPool

        def shutdown(self, **_: object) -> None: ...

    monkeypatch.setattr(packing, "ProcessPoolExecutor", Broken)
    monkeypatch.setattr(packing, "_MIN_PATCHES_PER_PROCESS", 1)
    with pytest.raises(PackingError, match="a decoding process was killed"):
        pack(tmp_path / "out", tiny_files(), workers=2)
