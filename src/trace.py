"""From a submission back to the archive: every link of the chain, checked against the bytes."""

from logging import Logger
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from src import paths
from src.params import load_params
from src.system.cli import run
from src.system.durable import read_json
from src.system.errors import ProjectError
from src.system.links import Link, Part, missing
from src.system.log import configure, get_logger

if TYPE_CHECKING:
    from rich.tree import Tree

_SIGNS = {"holds": "[green]✓[/]", "changed": "[bold red]✗[/]", "missing": "[bold yellow]?[/]"}


class BrokenChain(ProjectError):
    """A link of the chain doesn't hold, or can't be checked."""


def main(
    submission: Annotated[Path, typer.Argument(help="The table that predict wrote.")] = Path(
        "submission/submission.csv"
    ),
) -> None:
    """Show where a submission comes from, and check every link against the bytes.

    submission.csv, lineage.json, registry version, runs, parameters, code commit, data digests,
    archive. The exit code is 0 only where every link holds.

    Example:

    * python -m src.trace submission/submission.csv
    """
    params = load_params()
    configure(params.runtime.verbosity)
    archives = [paths.ROOT / params.ingest.archive]
    parts = trace(submission, archives, get_logger("trace"))
    show(parts, submission)
    broken = [link for part in parts for link in part.links if link.state != "holds"]
    if broken:
        n_links = sum(len(part.links) for part in parts)
        raise BrokenChain(
            f"{len(broken)} of {n_links} links don't hold, first: {broken[0].what}: "
            f"{broken[0].said}"
        )


def trace(submission: Path, archives: list[Path], log: Logger) -> list[Part]:
    """Every part of the chain, from the submission to the archive.

    Raises
    ------
    BrokenChain
        There is no submission.
    """
    if not submission.is_file():
        raise BrokenChain(f"no submission at {submission}; run: dvc repro predict")
    lineage_file = submission.with_name(paths.LINEAGE.name)
    try:
        lineage = read_json(lineage_file)
    except ProjectError as error:
        return [Part("submission", [missing(lineage_file.name, str(error))])]
    return follow(submission, lineage_file, lineage, archives, log)


def follow(
    submission: Path,
    lineage_file: Path,
    lineage: dict[str, Any],
    archives: list[Path],
    log: Logger,
) -> list[Part]:
    """The parts behind a ``lineage.json``."""
    from src.data import provenance as data
    from src.tracking import provenance as tracking

    if lineage.get("submission", "") is None:
        raise BrokenChain(f"{lineage_file} belongs to no submission: {lineage.get('reason')}")
    parts = [Part("submission", tracking.submission_links(submission, lineage_file))]
    try:
        model, digests = lineage["model"], lineage["data"]
        version = tracking.version_links(model, lineage["operating_point"])
        parts.append(Part(f"registry: {model['name']} version {model['version']}", version))
        evidence = tracking.read_version_evidence(model)
        parts.append(
            Part(
                f"runs and parameters: {model['run_id']}",
                tracking.run_links(model["run_id"], evidence),
            )
        )
        parts.append(Part("code", tracking.code_links(submission, lineage, evidence)))
        data_links = data.ingest_links(digests, log)
        parts.append(Part("data", [*data_links, *data.training_links(lineage, evidence)]))
        parts.append(Part("archive", data.archive_links(archives, evidence)))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        # a changed file above lacks what comes next
        said = f"the chain can't be followed further ({type(error).__name__}: {error})"
        parts.append(Part("what comes after", [missing(lineage_file.name, said)]))
    return parts


def show(parts: list[Part], submission: Path) -> None:
    """Print the chain as a tree."""
    from rich.console import Console

    # on a terminal its width, else wide enough for a file or a pager
    console = Console() if Console().is_terminal else Console(width=160)
    console.print(tree(parts, str(submission)))


def tree(parts: list[Part], title: str) -> "Tree":
    """A branch a part, a leaf a link."""
    from rich.markup import escape
    from rich.tree import Tree

    root = branch = Tree(escape(title))
    for part in parts:
        branch = branch.add(f"[bold]{escape(part.title)}[/]")
        for link in part.links:
            branch.add(_leaf(link))
    return root


def _leaf(link: Link) -> str:
    from rich.markup import escape

    state = "" if link.state == "holds" else f" [bold]{link.state.upper()}[/]:"
    return f"{_SIGNS[link.state]} {escape(link.what)}:{state} {escape(link.said)}"


if __name__ == "__main__":
    run(main)
