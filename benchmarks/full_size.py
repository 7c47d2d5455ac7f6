"""The data stages at Kaggle's size: ``python -m benchmarks.full_size`` (about 10 minutes).

Generates an archive of 220,025 + 57,458 patches, runs ``ingest``, ``split`` and ``explore`` on it
in a copy of the project, reads random batches, and prints what each took. Needs about 30 GB of
disk; ``--scale 0.05`` is a quick look. Not part of ``make bench``, for its disk and time.

Targets on 2 cores: ingest under 5 minutes and 1 GB; split under 60 s; explore under 4 minutes and
1.5 GB; over 20,000 warm random patches/s; ``dvc status`` under 15 s.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import typer
from rich.console import Console
from rich.table import Table
from ruamel.yaml import YAML

from benchmarks.full_archive import write_full_archive
from benchmarks.measured import Measured, run_measured

ROOT = Path(__file__).resolve().parent.parent
N_TRAIN, N_TEST, N_SLIDES = 220_025, 57_458, 216
STAGES = ("ingest", "split", "explore")
BYTES_NEEDED = 32e9

_BATCHES = """
import sys, time
from src.data.batches import training_batches
from src.data.dataset import load_split

started = time.perf_counter()
train = load_split("train")
opened_s = time.perf_counter() - started
for epoch in (1, 2):  # the first warms the page cache
    started = time.perf_counter()
    for batch in training_batches(len(train), batch_size=64, n_views=8, seed=1, epoch=epoch):
        pixels = train.take(batch.positions)  # as training does
    read_s = time.perf_counter() - started
print(opened_s, len(train) / read_s)
"""


def main(scale: float = 1.0, folder: Path | None = None, group_by: str = "auto") -> None:
    """Print one row a step; SCALE shrinks the archive, GROUP_BY is split.group_by."""
    if shutil.disk_usage(folder or tempfile.gettempdir()).free < BYTES_NEEDED * scale:
        sys.exit(f"less than {BYTES_NEEDED * scale / 1e9:.0f} GB free; name another --folder")
    with tempfile.TemporaryDirectory(prefix="hcd-full-", dir=folder) as temporary:
        table = Table("step", "wall s", "patches/s", "peak MB", "on disk MB")
        try:
            for row in _steps(Path(temporary), scale, group_by):
                table.add_row(*row)
        finally:
            Console(width=100).print(table)


def _steps(folder: Path, scale: float, group_by: str) -> Iterator[tuple[str, ...]]:
    n_train, n_test = round(N_TRAIN * scale), round(N_TEST * scale)
    n = n_train + n_test
    archive, project = folder / "archive.zip", folder / "project"
    started = time.perf_counter()
    write_full_archive(archive, n_train=n_train, n_test=n_test, n_slides=N_SLIDES)
    generated_s = time.perf_counter() - started
    yield _row("generate the archive", generated_s, n, None, archive.stat().st_size)

    _copy_project(project, archive, group_by)
    outputs = {
        "ingest": project / "data" / "ingest",
        "split": project / "data" / "split",
        "explore": project / "reports" / "explore",
    }
    for stage in STAGES:
        took = run_measured([sys.executable, "-m", f"src.{stage}"], cwd=project, env=_env(project))
        yield _stage_row(stage, took, n, outputs[stage])

    opened_s, rate = _time_batches(project)
    yield ("verify and open train", f"{opened_s:,.1f}", "", "", "")
    yield ("warm random batches of 64", "", f"{rate:,.0f}", "", "")

    _dvc(project, "commit", "--force", *STAGES)
    started = time.perf_counter()
    _dvc(project, "status", *STAGES)
    yield ("dvc status", f"{time.perf_counter() - started:,.1f}", "", "", "")


def _stage_row(stage: str, took: Measured, n: int, output: Path) -> tuple[str, ...]:
    n_bytes = sum(f.stat().st_size for f in output.rglob("*") if f.is_file())
    return _row(stage, took.wall_s, n, took.peak_bytes, n_bytes)


def _row(step: str, wall_s: float, n: int, peak: int | None, n_bytes: int) -> tuple[str, ...]:
    memory = "" if peak is None else f"{peak / 1e6:,.0f}"
    return step, f"{wall_s:,.1f}", f"{n / wall_s:,.0f}", memory, f"{n_bytes / 1e6:,.1f}"


def _copy_project(project: Path, archive: Path, group_by: str) -> None:
    """The project's files as they are in the working tree, in a repository of their own."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    )  # fmt: skip
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (project / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, project / name)
    subprocess.run(["git", "init", "-q"], cwd=project, check=True)
    yaml = YAML()
    params = yaml.load(project / "params.yaml")
    params["ingest"]["archive"] = str(archive)
    params["split"]["group_by"] = group_by
    yaml.dump(params, project / "params.yaml")


def _time_batches(project: Path) -> tuple[float, float]:
    done = subprocess.run(
        [sys.executable, "-c", _BATCHES],
        cwd=project, env=os.environ | _env(project), check=True, capture_output=True, text=True,
    )  # fmt: skip
    opened_s, rate = done.stdout.split()
    return float(opened_s), float(rate)


def _dvc(project: Path, *arguments: str) -> None:
    subprocess.run(
        [sys.executable, "-m", "dvc", *arguments],
        cwd=project, env=os.environ | _env(project), check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip


def _env(project: Path) -> dict[str, str]:
    return {"PYTHONPATH": str(project), "DVC_NO_ANALYTICS": "1"}


if __name__ == "__main__":
    typer.run(main)
