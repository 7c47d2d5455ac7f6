"""Writes that are whole or absent, and manifests that find every changed byte."""

import errno
import json
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from src import paths
from src.system.durable import (
    MANIFEST,
    IntegrityError,
    clear_leftovers,
    read_json,
    replacing,
    replacing_folder,
    verify_file,
    verify_folder,
    write_json,
)
from src.system.errors import ProjectError


class Interrupted(Exception):
    pass


def _write_then_fail(path):
    with replacing(path) as temporary:
        temporary.write_text("half")
        raise Interrupted


def _fill_then_fail(folder):
    with replacing_folder(folder) as temporary:
        (temporary / "a").write_text("half")
        raise Interrupted


def test_an_interrupted_write_leaves_what_was_there(tmp_path):
    """Catches a file truncated before its new content is whole."""
    path = tmp_path / "value.json"
    write_json(path, {"a": 1})
    with pytest.raises(Interrupted):
        _write_then_fail(path)
    assert read_json(path) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["value.json"]


def test_an_interrupted_folder_leaves_what_was_there(tmp_path):
    """Catches a folder of which half the files are new."""
    folder = tmp_path / "out"
    with replacing_folder(folder) as temporary:
        (temporary / "a").write_text("whole")
    with pytest.raises(Interrupted):
        _fill_then_fail(folder)
    assert (folder / "a").read_text() == "whole"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]
    verify_folder(folder)


def test_what_a_killed_process_left_is_cleared(tmp_path):
    """Catches gigabytes of half a folder that stay, and a folder lost between two renames."""
    (tmp_path / ".out.tmp").mkdir()
    (tmp_path / ".out.tmp" / "half").touch()
    (tmp_path / ".out.old").mkdir()
    (tmp_path / ".out.old" / "a").write_text("whole")
    with pytest.raises(Interrupted):
        _fill_then_fail(tmp_path / "out")
    assert (tmp_path / "out" / "a").read_text() == "whole"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]


def test_what_killed_writers_of_a_file_left_is_cleared(tmp_path):
    """Catches a checkpoint of half a gigabyte that stays after every kill."""
    path = tmp_path / "finetune.npz"
    code = (
        "import os, signal, sys; from pathlib import Path; from src.system import durable\n"
        "durable._fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)\n"
        "durable.write_bytes(Path(sys.argv[1]), b'state')"
    )
    died = subprocess.run([sys.executable, "-c", code, str(path)], cwd=paths.ROOT)
    assert died.returncode == -signal.SIGKILL
    write_json(path, {"a": 1})
    write_json(tmp_path / "train.npz", {"b": 1})
    (tmp_path / ".train.npz.0.tmp").touch()  # another stage may be writing it
    assert len(list(tmp_path.iterdir())) == 4
    clear_leftovers(path)
    left = sorted(file.name for file in tmp_path.iterdir())
    assert left == [".train.npz.0.tmp", "finetune.npz", "train.npz"]


def test_a_folder_is_replaced_whole(tmp_path):
    """Catches files of the old folder that stay among the new."""
    folder = tmp_path / "out"
    for name in ("old", "new"):
        with replacing_folder(folder) as temporary:
            (temporary / name).write_text(name)
    assert sorted(p.name for p in folder.iterdir()) == [MANIFEST, "new"]


@pytest.fixture
def folder(tmp_path):
    with replacing_folder(tmp_path / "out") as temporary:
        (temporary / "sub").mkdir()
        (temporary / "sub" / "a").write_bytes(b"\x00\x01")
    return tmp_path / "out"


def test_one_flipped_bit_is_found(folder):
    """Catches a reader that trusts sizes."""
    (folder / "sub" / "a").write_bytes(b"\x00\x03")
    with pytest.raises(IntegrityError, match=r"sha256 mismatch: .*sub/a"):
        verify_folder(folder)


def test_missing_extra_and_unlisted(folder):
    """Catches files that nobody vouches for."""
    (folder / "b").touch()
    with pytest.raises(IntegrityError, match=r"file not in the manifest: .*b;"):
        verify_folder(folder)
    (folder / "b").unlink()
    (folder / "sub" / "a").unlink()
    with pytest.raises(IntegrityError, match="file missing"):
        verify_folder(folder)
    (folder / MANIFEST).unlink()
    with pytest.raises(IntegrityError, match="manifest missing"):
        verify_folder(folder)


def test_json_is_stable_and_refuses_nan(tmp_path):
    """Catches key order that depends on insertion, and JSON that other readers can't parse."""
    write_json(tmp_path / "a.json", {"b": 1, "a": 2})
    assert list(json.loads((tmp_path / "a.json").read_text())) == ["a", "b"]
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "b.json", {"a": float("nan")})
    assert not (tmp_path / "b.json").exists()


def test_torn_and_missing_json_are_named(tmp_path):
    """Catches a traceback for a file that was cut short."""
    with pytest.raises(ProjectError, match=r"file not found: .*a\.json"):
        read_json(tmp_path / "a.json")
    (tmp_path / "a.json").write_text('{"a":')
    with pytest.raises(ProjectError, match=r"not valid JSON: .*a\.json"):
        read_json(tmp_path / "a.json")


@pytest.mark.parametrize(
    "text", ["{}", "[]", "null", '{"files": []}', '{"files": {"sub/a": {}}}', '{"files": {"a": 1}}']
)
def test_a_damaged_manifest_is_named(folder, text):
    """Catches KeyError and TypeError where valid JSON is no manifest."""
    (folder / MANIFEST).write_text(text)
    for verify in (verify_folder, lambda f: verify_file(f / "a")):
        with pytest.raises(IntegrityError, match=r"manifest damaged: .*run the stage"):
            verify(folder)


@pytest.mark.parametrize("write", [_fill_then_fail, _write_then_fail])
def test_a_full_disk_is_one_line(tmp_path, monkeypatch, write):
    """Catches a traceback from pyarrow, numpy or the manifest when space runs out."""

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(ProjectError, match=r"disk full: writing .*out; free some space"):
        write(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_waiting_for_another_writer_is_said(folder, caplog):
    """Catches a command that hangs without a word while another one writes the same folder."""
    inside, done = threading.Event(), threading.Event()

    def write():
        with replacing_folder(folder):
            inside.set()
            done.wait(10)

    thread = threading.Thread(target=write)
    thread.start()
    inside.wait(10)
    threading.Timer(0.2, done.set).start()
    with caplog.at_level("INFO", logger="hcd.out"), replacing_folder(folder):
        pass
    thread.join()
    assert caplog.messages == [f"waiting for another process, which writes {folder}"]
