"""Send the submission to Kaggle and write its scores where the model's other figures are.

Kaggle knows a submission by its description, which names version, run and SHA-256: the same table
is never uploaded twice, and a second call goes on waiting for the scores of the first.
"""

import contextlib
import io
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from logging import Logger
from typing import Annotated, Any, Protocol, cast

import typer

from src import paths
from src.data.sources import COMPETITION, kaggle_client
from src.params import load_params
from src.system.cli import run
from src.system.durable import read_json, verify_folder
from src.system.errors import ProjectError
from src.system.log import configure, get_logger

_POLL_EVERY_S = 15.0
_PAGE_SIZE, _MAX_PAGES = 100, 100  # Kaggle may give fewer a page
_RULES = f"https://www.kaggle.com/c/{COMPETITION}/rules"
_REFUSALS = {
    400: "Kaggle refuses the submission: the day's limit may be reached; try tomorrow",
    401: "Kaggle doesn't know these credentials; make a new token at "
    "https://www.kaggle.com/settings/api",
    403: f"Kaggle refuses the submission: accept the competition's rules at {_RULES} first",
    404: f"Kaggle has no competition {COMPETITION}; see {_RULES}",
}


class SubmitError(ProjectError):
    """The submission can't be sent, or Kaggle can't score it."""


class SubmissionClient(Protocol):
    """What is used of ``kaggle.api.kaggle_api_extended.KaggleApi``."""

    def competition_submit(
        self, file_name: str, message: str, competition: str, quiet: bool
    ) -> Any:
        """Upload a table; the answer's ``message`` says so where the upload failed."""

    def competition_submissions(
        self, competition: str, *, page_number: int, page_size: int
    ) -> Sequence[Any] | None:
        """One page of the submissions, from 1, newest first; empty after the last.

        Each has ``ref`` (its number), ``description``, ``status`` (an enum: PENDING, COMPLETE or
        ERROR), ``error_description``, ``public_score`` and ``private_score`` (text, empty while
        unknown).
        """


@dataclass(frozen=True)
class Sent:
    """A submission and the version it comes from, as ``lineage.json`` says."""

    name: str
    version: int
    run_id: str
    sha256: str

    @property
    def description(self) -> str:
        """What Kaggle shows beside it, and what it is found by."""
        return f"{self.name} v{self.version} run {self.run_id[:12]} sha256 {self.sha256}"


@dataclass(frozen=True)
class Scores:
    """Kaggle's AUROC of a submission; None where Kaggle doesn't say it."""

    public: float | None
    private: float | None


def main(
    wait: Annotated[
        float, typer.Option(help="Seconds to wait for the scores; 0 = upload only.", min=0)
    ] = 600.0,
) -> None:
    """Upload submission/submission.csv to Kaggle and log its scores on run and version.

    Needs Kaggle's client and a token, as make data does. Run again, it uploads nothing twice and
    goes on waiting.

    Example:

    * python -m src.submit --wait 60
    """
    params = load_params()
    configure(params.runtime.verbosity)
    log = get_logger("submit")
    sent = read_sent()
    client = cast(SubmissionClient, kaggle_client())
    failed_before = upload(sent, client, log)
    scores = wait_for_scores(sent, client, wait_s=wait, failed_before=failed_before)
    if scores is None:
        log.info(f"no scores yet after {wait:g} s; run again later, nothing is uploaded twice")
        return
    record_scores(sent, scores, log)


def read_sent() -> Sent:
    """The submission that lies here, once its files are verified.

    Raises
    ------
    SubmitError
        There is none, or it was made with ``ingest.no_submission``.
    IntegrityError
        A file isn't the one that ``predict`` wrote.
    """
    if not paths.LINEAGE.is_file():
        raise SubmitError(f"no submission at {paths.SUBMISSION}; run: dvc repro predict")
    verify_folder(paths.SUBMISSION_DIR)
    lineage = read_json(paths.LINEAGE)
    if lineage["submission"] is None:
        raise SubmitError(f"there is nothing to submit: {lineage['reason']}")
    model = lineage["model"]
    return Sent(
        name=str(model["name"]),
        version=int(model["version"]),
        run_id=str(model["run_id"]),
        sha256=str(lineage["submission"]["sha256"]),
    )


def upload(sent: Sent, client: SubmissionClient, log: Logger) -> frozenset[Any]:
    """Upload the table, unless Kaggle has it.

    Returns the ``ref`` of earlier uploads of it that Kaggle couldn't score.

    Raises
    ------
    SubmitError
        Kaggle can't be reached or refuses it.
    """
    failed_before: set[Any] = set()
    for entry in _entries(sent, client):
        if _status(entry) != "ERROR":
            log.info("Kaggle has this very table: not uploaded again")
            return frozenset(failed_before)
        failed_before.add(entry.ref)
    with _refusals(), contextlib.redirect_stdout(io.StringIO()) as said:
        answer = client.competition_submit(
            str(paths.SUBMISSION), sent.description, COMPETITION, quiet=True
        )
    if "could not submit" in str(getattr(answer, "message", "")).lower():
        why = " ".join(said.getvalue().split()) or "no reason given"
        raise SubmitError(f"the upload to Kaggle failed ({why}); run again")
    log.info(f"uploaded {paths.SUBMISSION.name} of version {sent.version} to {COMPETITION}")
    return frozenset(failed_before)


def _newest(sent: Sent, client: SubmissionClient, left_out: frozenset[Any]) -> Any | None:
    """Kaggle's newest entry of this very table, without those ``left_out``."""
    return next((entry for entry in _entries(sent, client) if entry.ref not in left_out), None)


def _entries(sent: Sent, client: SubmissionClient) -> Iterator[Any]:
    """Kaggle's entries of this very table, newest first, however many came after them."""
    seen: set[Any] = set()
    for page in range(1, _MAX_PAGES + 1):
        with _refusals():
            listed = client.competition_submissions(
                COMPETITION, page_number=page, page_size=_PAGE_SIZE
            )
        new = [entry for entry in listed or [] if entry and entry.ref not in seen]
        if not new:
            return
        seen |= {entry.ref for entry in new}
        yield from (entry for entry in new if sent.sha256 in (entry.description or ""))


def wait_for_scores(
    sent: Sent,
    client: SubmissionClient,
    *,
    wait_s: float,
    failed_before: frozenset[Any] = frozenset(),
    sleep: Callable[[float], None] = time.sleep,
    now: Callable[[], float] = time.monotonic,
) -> Scores | None:
    """Ask every 15 s until Kaggle has scored the submission; None where it hasn't in time.

    ``failed_before`` are uploads of the table that failed before this one: right after it they may
    still be the newest that Kaggle lists.

    Raises
    ------
    SubmitError
        Kaggle can't read the table, or can't be reached.
    """
    until = now() + wait_s
    while True:
        mine = _newest(sent, client, failed_before)
        if mine is not None and _status(mine) == "ERROR":
            raise SubmitError(f"Kaggle can't score the submission: {mine.error_description}")
        if mine is not None and _status(mine) == "COMPLETE":
            return Scores(_number(mine.public_score), _number(mine.private_score))
        if now() + _POLL_EVERY_S > until:
            return None
        sleep(_POLL_EVERY_S)


def record_scores(sent: Sent, scores: Scores, log: Logger) -> None:
    """Write the scores onto the run, as metrics, and onto the version, as tags."""
    from src.tracking.scores import write_scores

    found = {"public": scores.public, "private": scores.private}
    known = {kind: value for kind, value in found.items() if value is not None}
    if not known:
        raise SubmitError("Kaggle scored the submission but shows no score; run again later")
    write_scores(sent.name, sent.version, sent.run_id, submission_sha256=sent.sha256, scores=known)
    said = ", ".join(f"{kind} {value:.4f}" for kind, value in known.items())
    log.info(f"Kaggle's AUROC of version {sent.version}: {said}")


def _status(entry: Any) -> str:
    return str(getattr(entry.status, "name", entry.status)).upper()


def _number(score: str | float | None) -> float | None:
    return None if score in (None, "") else float(score)


@contextmanager
def _refusals() -> Iterator[None]:
    """Turn what Kaggle's client raises inside into one line."""
    from requests import HTTPError, RequestException

    try:
        yield
    except HTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        raise SubmitError(_REFUSALS.get(status, f"Kaggle answered {error}; try later")) from error
    except RequestException as error:
        raise SubmitError(
            f"can't reach Kaggle ({type(error).__name__}); check the network and run again"
        ) from error


if __name__ == "__main__":
    run(main)
