"""A few seconds of fuzzing on every run; ``make fuzz`` for a minute."""

import os
import subprocess
import sys

from src import paths


def test_mutated_input_ends_in_a_result_or_one_of_our_errors() -> None:
    """Catches Pillow's, zipfile's and csv's own exceptions getting out, hangs and bombs."""
    seconds = os.environ.get("FUZZ_SECONDS", "8")
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.fuzz", "--seconds", seconds],
        cwd=paths.ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    sys.stdout.write(done.stdout)
