"""The download, up to Kaggle's client: no network here."""

import importlib.util
import logging
from pathlib import Path

import pytest
from requests import ConnectionError, HTTPError, Response

from src.data.archives import ArchiveError
from src.data.download import ARCHIVE, DownloadError, download_archive, kaggle_client
from tests.data.archives import tiny_files, write_zip

LOG = logging.getLogger("test.download")


class Client:
    """Kaggle's client as far as it is used: writes a zip, or raises."""

    def __init__(self, error: Exception | None = None, *, kept: float = 1.0) -> None:
        self.error = error
        self.kept = kept
        self.calls = 0

    def authenticate(self) -> None:
        pass

    def competition_download_files(
        self,
        competition: str,
        path: str,
        force: bool,  # noqa: ARG002
        quiet: bool,  # noqa: ARG002
    ) -> None:
        self.calls += 1
        if self.error:
            raise self.error
        archive = write_zip(Path(path) / f"{competition}.zip", tiny_files())
        data = archive.read_bytes()
        archive.write_bytes(data[: int(self.kept * len(data))])


def answered(status: int) -> HTTPError:
    response = Response()
    response.status_code = status
    return HTTPError(f"{status} from Kaggle", response=response)


def test_archive_arrives_whole_and_only_once(tmp_path: Path) -> None:
    client = Client()
    archive = download_archive(tmp_path / "source", client, LOG)
    assert [f.name for f in archive.parent.iterdir()] == [ARCHIVE]
    assert download_archive(tmp_path / "source", client, LOG) == archive
    assert client.calls == 1


@pytest.mark.parametrize(
    ("error", "core"),
    [
        (answered(401), "export KAGGLE_API_TOKEN"),
        (answered(403), "accept the competition's rules at https://"),
        (answered(500), "try later"),
        (ConnectionError("no route"), "check the network"),
    ],
)
def test_refusals_say_what_to_do(tmp_path: Path, error: Exception, core: str) -> None:
    with pytest.raises(DownloadError, match=core):
        download_archive(tmp_path, Client(error), LOG)
    assert not (tmp_path / ARCHIVE).exists()


@pytest.mark.parametrize("damage", ["torn", "flipped"])
def test_damaged_download_is_fetched_anew(tmp_path: Path, damage: str) -> None:
    """Catches one damaged byte of 6 GB that stays: the client skips a file of the right size."""

    class Skipping(Client):
        def competition_download_files(self, competition: str, path: str, **options: bool) -> None:
            archive = Path(path) / f"{competition}.zip"
            if archive.exists():
                return
            super().competition_download_files(competition, path, **options)
            if damage == "flipped" and self.calls == 1:
                data = bytearray(archive.read_bytes())
                data[len(data) // 2] ^= 1
                archive.write_bytes(data)

    client = Skipping(kept=0.5 if damage == "torn" else 1.0)
    with pytest.raises(ArchiveError, match=r"download is damaged, and deleted: .*; run again"):
        download_archive(tmp_path, client, LOG)
    assert not (tmp_path / ARCHIVE).exists()
    client.kept = 1.0
    assert download_archive(tmp_path, client, LOG).is_file()
    assert client.calls == 2


def test_damaged_archive_is_not_deleted_but_named(tmp_path: Path) -> None:
    """Catches a tracked archive replaced without a word, and a message that helps nobody."""
    (tmp_path / ARCHIVE).write_bytes(b"PK torn")
    with pytest.raises(ArchiveError, match=rf"delete .*{ARCHIVE} and run again"):
        download_archive(tmp_path, Client(), LOG)
    assert (tmp_path / ARCHIVE).read_bytes() == b"PK torn"


def test_without_the_client_one_line_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(DownloadError, match="run: make data"):
        kaggle_client()


def test_without_credentials_one_line_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The real client, where it is installed (make data): it must neither print nor exit."""
    if importlib.util.find_spec("kaggle") is None:  # importing it prints
        pytest.skip("kaggle is not installed")
    for name in ("KAGGLE_API_TOKEN", "KAGGLE_USERNAME", "KAGGLE_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("KAGGLE_CONFIG_DIR", str(tmp_path))
    with pytest.raises(DownloadError, match="no Kaggle credentials; create a token"):
        kaggle_client()
    assert capfd.readouterr().out == ""
