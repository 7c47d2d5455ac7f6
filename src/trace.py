"""From a submission back to the archive: every link of the chain, compared digest by digest."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.tree import Tree

from src import paths
from src.params import load_params
from src.system.cli import run
from src.system.durable import read_json
from src.system.errors import ProjectError
from src.system.log import configure

_SIGNS = {"holds": "[green]✓[/]", "changed": "[bold red]✗[/]", "missing": "[bold yellow]?[/]"}


class BrokenChain(ProjectError):
    """A link of the chain is broken, or can't be checked."""


def main(
    submission: Annotated[Path, typer.Argument(help="The table that predict wrote.")] = Path(
        "submission/submission.csv"
    ),
) -> None:
    """Show where a submission comes from, and check every link against the digests.

    submission.csv, lineage.json, registry version, runs, parameters, code commit, data, split,
    archive. The exit code is 0 only if every link holds.

    Example:

    * python -m src.trace submission/submission.csv
    """
    params = load_params()
    configure(params.runtime.verbosity)
    from src.tracking.chain import follow

    lineage_file = submission.with_name(paths.LINEAGE.name)
    if lineage_file.is_file() and read_json(lineage_file).get("submission", "") is None:
        raise BrokenChain(f"no submission: {read_json(lineage_file).get('reason')}")
    if not submission.is_file():
        raise BrokenChain(f"no submission at {submission}; run: dvc repro predict")
    parts = follow(submission, paths.ROOT / params.ingest.archive)
    root = branch = Tree(escape(str(submission)))
    for title, links in parts:
        branch = branch.add(f"[bold]{escape(title)}[/]")
        for link in links:
            state = "" if link.state == "holds" else f" [bold]{link.state.upper()}[/]:"
            branch.add(f"{_SIGNS[link.state]} {escape(link.what)}:{state} {escape(link.said)}")
    # on a terminal its width, else wide enough for a file or a pager
    console = Console() if Console().is_terminal else Console(width=160)
    console.print(root)
    links = [link for _, links in parts for link in links]
    broken = [link for link in links if link.state != "holds"]
    if broken:
        raise BrokenChain(
            f"{len(broken)} of {len(links)} links are broken, first: {broken[0].what}: "
            f"{broken[0].said}"
        )


if __name__ == "__main__":
    run(main)
