"""A few seconds of fuzzing on every run; ``make fuzz`` for a minute."""

import os
import subprocess
import sys

import pytest

from src import paths
from src.data.archives import BadPatchError
from tests.faults import fuzz


def test_mutated_input_ends_in_a_result_or_one_of_our_errors() -> None:
    """Catches Pillow's, zipfile's and csv's own exceptions getting out, hangs and bombs."""
    seconds = os.environ.get("FUZZ_SECONDS", "8")
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.fuzz", "--seconds", seconds],
        cwd=paths.ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    sys.stdout.write(done.stdout)


def test_the_fuzzer_itself_notices_hangs_memory_and_defects(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches bounds that nothing can exceed: a decoder turns MemoryError into a corrupt file."""

    def hang(_: object) -> None:
        while True:
            pass

    def swallow(_: object) -> None:
        try:
            hang(None)
        except Exception as error:
            raise BadPatchError("corrupt") from error

    def gobble(_: object) -> None:
        fuzz.decode_within_bounds(b"")

    def corrupt(_: bytes) -> None:
        raise BadPatchError("corrupt") from MemoryError()

    monkeypatch.setattr(fuzz, "MAX_CASE_S", 0.05)
    monkeypatch.setattr(fuzz, "decode_tiff", corrupt)
    for attempt, said in (
        (swallow, "0.05 s of processor time"),
        (gobble, "over 600 MB"),
        (lambda _: 1 / 0, "ZeroDivisionError"),
    ):
        monkeypatch.setattr(fuzz, "TARGETS", {"x": (attempt, 1)})
        with pytest.raises(SystemExit, match=r"again: .* --case x:7"):
            fuzz._checked("x", 7)
        assert said in capsys.readouterr().err
