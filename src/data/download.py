"""The competition's archive from Kaggle, with Kaggle's own client (the extra ``kaggle``)."""

import contextlib
import importlib.util
import io
import shutil
from logging import Logger
from pathlib import Path
from typing import Protocol

from src.data.archives import ArchiveError, BadPatchError
from src.data.zip_archive import ZipArchive
from src.system.errors import ProjectError

COMPETITION = "histopathologic-cancer-detection"
ARCHIVE = f"{COMPETITION}.zip"

_RULES = f"https://www.kaggle.com/c/{COMPETITION}/rules"
_CREDENTIALS = (
    "create a token at https://www.kaggle.com/settings/api and export KAGGLE_API_TOKEN, or save "
    "it as ~/.kaggle/access_token"
)
_REFUSALS = {
    401: f"Kaggle doesn't know these credentials; {_CREDENTIALS}",
    403: f"Kaggle refuses the download: accept the competition's rules at {_RULES} first",
    404: f"Kaggle has no competition {COMPETITION}; see {_RULES}",
}


class DownloadError(ProjectError):
    """The archive can't be fetched."""


class KaggleClient(Protocol):
    """What is used of ``kaggle.api.kaggle_api_extended.KaggleApi``."""

    def authenticate(self) -> None:
        """Find credentials; ends the process without any."""

    def competition_download_files(
        self, competition: str, path: str, force: bool, quiet: bool
    ) -> None:
        """Download ``<competition>.zip`` into ``path``; goes on with a partial file."""


def kaggle_client() -> KaggleClient:
    """Kaggle's client, ready to use.

    Raises
    ------
    DownloadError
        It isn't installed, or there are no credentials.
    """
    if importlib.util.find_spec("kaggle") is None:
        raise DownloadError(
            "Kaggle's client is not installed; run: make data, which installs it and downloads"
        )
    # importing it already looks for credentials, and prints a page without any
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            from kaggle.api.kaggle_api_extended import KaggleApi

            client: KaggleClient = KaggleApi()
            client.authenticate()
        except SystemExit as error:
            raise DownloadError(f"no Kaggle credentials; {_CREDENTIALS}") from error
        except (OSError, ValueError) as error:
            raise DownloadError(f"can't use the Kaggle credentials ({error})") from error
    return client


def download_archive(folder: Path, client: KaggleClient, log: Logger) -> Path:
    """Fetch the archive into ``folder``, unless a sound one is there; return its path.

    An interrupted download goes on where it stopped. ``folder`` gets the archive only when all of
    it agrees with the checksums in it; what doesn't is deleted, or Kaggle's client would take it
    for done because of its size.

    Raises
    ------
    DownloadError
        No network, credentials that Kaggle doesn't know, or rules not accepted.
    ArchiveError
        What came isn't a sound zip.
    """
    from requests import HTTPError, RequestException

    archive = folder / ARCHIVE
    if archive.is_file():
        try:
            ZipArchive(archive)
        except ArchiveError as error:
            raise ArchiveError(f"{error}: delete {archive} and run again") from error
        log.info(f"{ARCHIVE} is there already: not downloaded again")
        return archive
    partial = folder / ".partial"
    partial.mkdir(parents=True, exist_ok=True)
    log.info(f"downloading {ARCHIVE} (6.3 GB) from Kaggle")
    try:
        client.competition_download_files(COMPETITION, path=str(partial), force=False, quiet=False)
    except HTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        raise DownloadError(_REFUSALS.get(status, f"Kaggle answered {error}; try later")) from error
    except RequestException as error:
        raise DownloadError(
            f"can't reach Kaggle ({type(error).__name__}); check the network and run again, "
            "it goes on where it stopped"
        ) from error
    log.info(f"checking {ARCHIVE}")
    try:
        _check_all(partial / ARCHIVE)
    except (ArchiveError, BadPatchError) as error:
        shutil.rmtree(partial)
        raise ArchiveError(f"the download is damaged, and deleted: {error}; run again") from error
    (partial / ARCHIVE).replace(archive)
    shutil.rmtree(partial)
    return archive


def _check_all(path: Path) -> None:
    """Read every member, which compares it with its checksum; a minute for Kaggle's."""
    archive = ZipArchive(path)
    with archive.reader.open() as read:
        for name in archive.names():
            member = archive.member(name)
            if member is not None:
                read(member)
