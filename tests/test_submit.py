"""The command ``submit``, up to Kaggle's client: no network here."""

import itertools
import logging
from types import SimpleNamespace

import pytest
from requests import ConnectionError, HTTPError, Response

from src import paths, submit
from src.data.sources import DownloadError
from src.submit import Scores, Sent, SubmitError
from src.system.durable import IntegrityError, replacing_folder, write_json
from src.tracking import registry, runs
from tests.tracking.support import final_folder, record

pytest_plugins = ("tests.tracking.fixtures",)

LOG = logging.getLogger("hcd.test")
SENT = Sent("hcd", 3, "run0123456789", "a" * 64)


REFS = itertools.count()


class Client:
    """Kaggle's client as far as it is used; answers each listing with the next state."""

    def __init__(self, *states, message="Successfully submitted", error=None):
        self.states = list(states)
        self.uploads = []
        self.message = message
        self.error = error

    def competition_submit(self, file_name, message, competition, quiet):
        self.uploads.append((file_name, message, competition, quiet))
        return SimpleNamespace(message=self.message)

    def competition_submissions(self, competition, *, page_number, page_size):
        """Twenty a page, whatever is asked for: Kaggle may give fewer."""
        assert competition == "histopathologic-cancer-detection"
        assert page_size > 0
        if self.error is not None:
            raise self.error
        if page_number == 1:
            self.state = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        return self.state[20 * (page_number - 1) : 20 * page_number]


def entry(status, public="", private="", sha256=SENT.sha256):
    return SimpleNamespace(
        ref=next(REFS),
        description=f"hcd v3 sha256 {sha256}",
        status=SimpleNamespace(name=status),
        public_score=public,
        private_score=private,
        error_description="Submission must have 57458 rows",
    )


OTHER = entry("COMPLETE", "0.5", "0.5", sha256="b" * 64)
PENDING = entry("PENDING")
SCORED = entry("COMPLETE", "0.96488", "0.95717")


class Clock:
    """Time that passes only while one sleeps."""

    def __init__(self):
        self.time_s = 0.0

    def sleep(self, seconds):
        self.time_s += seconds

    def now(self):
        return self.time_s


def wait(client, wait_s=600.0, **more):
    clock = Clock()
    scores = submit.wait_for_scores(
        SENT, client, wait_s=wait_s, sleep=clock.sleep, now=clock.now, **more
    )
    return scores, clock.time_s


def test_uploads_under_a_description_it_is_found_by_again():
    client = Client([OTHER])
    submit.upload(SENT, client, LOG)
    ((file_name, message, competition, quiet),) = client.uploads
    assert file_name == str(paths.SUBMISSION)
    assert message == f"hcd v3 run run012345678 sha256 {'a' * 64}"
    assert (competition, quiet) == ("histopathologic-cancer-detection", True)


@pytest.mark.parametrize("there", [PENDING, SCORED])
def test_same_table_is_not_uploaded_twice(there):
    """Kaggle allows five submissions a day."""
    client = Client([OTHER, there])
    submit.upload(SENT, client, LOG)
    assert client.uploads == []


def test_table_of_fifty_submissions_ago_is_not_uploaded_twice():
    """Kaggle's client lists a page of 20 unless asked for more."""
    others = [entry("COMPLETE", "0.5", sha256="b" * 64) for _ in range(50)]
    client = Client([*others, SCORED])
    submit.upload(SENT, client, LOG)
    assert client.uploads == []
    assert wait(Client([*others, SCORED]))[0] == Scores(public=0.96488, private=0.95717)


def test_table_kaggle_could_not_read_is_uploaded_again():
    """And right after it the failed one is still the newest that Kaggle lists."""
    failed = entry("ERROR")
    client = Client([failed])
    failed_before = submit.upload(SENT, client, LOG)
    assert len(client.uploads) == 1
    scores, waited_s = wait(
        Client([failed], [PENDING, failed], [SCORED, failed]), failed_before=failed_before
    )
    assert (scores.public, waited_s) == (0.96488, 30.0)


def test_failed_upload_is_not_taken_for_one():
    """The client answers instead of raising."""
    client = Client([], message="Could not submit to competition")
    with pytest.raises(SubmitError, match="the upload to Kaggle failed"):
        submit.upload(SENT, client, LOG)


def test_waits_until_scored_and_takes_its_own_scores():
    scores, waited_s = wait(Client([OTHER], [PENDING, OTHER], [SCORED, OTHER]))
    assert scores == Scores(public=0.96488, private=0.95717)
    assert waited_s == 30.0


def test_private_score_may_be_hidden():
    scores, _ = wait(Client([entry("COMPLETE", "0.9")]))
    assert scores == Scores(public=0.9, private=None)


@pytest.mark.parametrize(("wait_s", "waited_s"), [(0.0, 0.0), (14.9, 0.0), (15.0, 15.0)])
def test_gives_up_in_time(wait_s, waited_s):
    assert wait(Client([PENDING]), wait_s) == (None, waited_s)


def test_table_kaggle_can_not_score_is_said():
    with pytest.raises(SubmitError, match="Submission must have 57458 rows"):
        wait(Client([entry("ERROR")]))


def answered(status):
    response = Response()
    response.status_code = status
    return HTTPError(f"{status} from Kaggle", response=response)


@pytest.mark.parametrize(
    ("error", "core"),
    [
        (answered(400), "limit may be reached"),
        (answered(401), "make a new token"),
        (answered(403), "accept the competition's rules at https://"),
        (answered(500), "try later"),
        (ConnectionError("no route"), "check the network"),
    ],
)
def test_refusals_say_what_to_do(error, core):
    with pytest.raises(SubmitError, match=core):
        submit.upload(SENT, Client(error=error), LOG)


@pytest.fixture
def submission(tmp_path, monkeypatch):
    """Write a submission folder as ``predict`` does; give it other entries of the lineage."""
    folder = tmp_path / "submission"
    for name, path in (("SUBMISSION_DIR", ""), ("SUBMISSION", "submission.csv")):
        monkeypatch.setattr(paths, name, folder / path)
    monkeypatch.setattr(paths, "LINEAGE", folder / "lineage.json")

    def write(model=None, **changes):
        model = model or {"name": "hcd", "version": 3, "run_id": "run0123456789"}
        lineage = {"submission": {"sha256": "a" * 64}, "model": model, **changes}
        with replacing_folder(folder) as temporary:
            (temporary / "submission.csv").write_text("id,label\n")
            write_json(temporary / "lineage.json", lineage)

    return write


def test_reads_what_predict_wrote(submission):
    submission()
    assert submit.read_sent() == SENT


def test_changed_table_is_not_sent(submission):
    submission()
    paths.SUBMISSION.write_text("id,label\nx,1\n")
    with pytest.raises(IntegrityError, match="sha256 mismatch"):
        submit.read_sent()


def test_nothing_to_send(submission):
    with pytest.raises(SubmitError, match="run: dvc repro predict"):
        submit.read_sent()
    submission(submission=None, reason="left out")
    with pytest.raises(SubmitError, match="nothing to submit: left out"):
        submit.read_sent()


def test_without_the_client_or_credentials_one_line(submission, monkeypatch):
    submission()
    monkeypatch.setattr(submit, "configure", lambda _: None)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(DownloadError, match="Kaggle's client is not installed"):
        submit.main()


@pytest.mark.tensorflow
def test_scores_arrive_on_run_and_version(
    submission, store, tmp_path, keras_file, model_name, monkeypatch
):
    with runs.training_run(record()) as training:
        pass
    final = final_folder(tmp_path / "final", keras_file)
    evidence = {"auroc": 0.9, "baseline_auroc": 0.8}
    run_id = training.run_id
    registry.register_version(final, name=model_name, run_id=run_id, evidence=evidence)
    submission({"name": model_name, "version": 1, "run_id": run_id})
    monkeypatch.setattr(submit, "configure", lambda _: None)
    monkeypatch.setattr(submit, "kaggle_client", lambda: Client([], [SCORED]))
    submit.main(wait=0.0)
    metrics = store.client.get_run(run_id).data.metrics
    assert (metrics["kaggle.public_score"], metrics["kaggle.private_score"]) == (0.96488, 0.95717)
    tags = registry.version_tags(model_name, 1)
    assert (tags["kaggle.public_score"], tags["kaggle.private_score"]) == ("0.96488", "0.95717")
    assert tags["kaggle.submission_sha256"] == "a" * 64
