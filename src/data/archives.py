"""What an archive is: members that passed every check, behind one small interface.

An archive holds ``train/<id>.tif``, ``test/<id>.tif``, ``train_labels.csv`` and
``sample_submission.csv``. Nothing in it is trusted: names, kinds and sizes of all members are
checked (``src.data.member_checks``) before the first byte of one is used, and no path is ever
built from a name in a zip.

Which path is opened as what stands in ``src.data.sources``.
"""

import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

from src.system.errors import ProjectError

IMAGE_FOLDERS = ("train", "test")
IMAGE_SUFFIX = ".tif"
MAX_IMAGE_BYTES = 1 << 20  # a patch has 27,935


class ArchiveError(ProjectError):
    """The archive as a whole can't be used."""


class BadPatchError(ProjectError):
    """One image can't be used; it may be quarantined (``ingest.max_bad``)."""


class Member(NamedTuple):
    """One file of an archive.

    Attributes
    ----------
    n_bytes
        Once read.
    offset, stored_bytes, method, crc32
        Where and how it lies in a zip; in PCam's files ``offset`` counts patches.
    encoding
        What the bytes are: ``tiff``, or ``raw`` pixels.
    source
        Which of several combined archives it is in.
    """

    name: str
    n_bytes: int
    offset: int = 0
    stored_bytes: int = 0
    method: int = zipfile.ZIP_STORED
    crc32: int = 0
    encoding: str = "tiff"
    source: int = 0


Read = Callable[[Member], bytes]


class Reader(Protocol):
    """Reads members in any process; pickles to a few bytes, unlike the archive's directory."""

    @contextmanager
    def open(self) -> Iterator[Read]:
        """Yield a function from member to its bytes.

        That function raises :class:`BadPatchError` where one member is damaged and
        :class:`ArchiveError` where the archive is.
        """


class Archive(ABC):
    """Members of an archive that passed every check of names, kinds and sizes.

    Parameters
    ----------
    path
        The archive.

    Raises
    ------
    ArchiveError
        It can't be opened, or a member is unsafe, doubled, too large, or not a plain file.
    """

    kind: ClassVar[str]
    n_bytes: int
    reader: Reader

    def __init__(self, path: Path) -> None:
        self.path = path

    @abstractmethod
    def images(self, folder: str) -> list[str] | None:
        """Names without ``.tif`` of the images in ``folder``, in any order; None: no folder."""

    @abstractmethod
    def member(self, name: str) -> Member | None:
        """The member of that name; None where there is none."""

    def parts(self) -> "list[Archive]":
        """The archives it is made of, each with its own tables: itself, unless combined."""
        return [self]

    def close(self) -> None:  # noqa: B027
        """Give back what was unpacked to read it."""

    def summary(self) -> dict[str, Any]:
        """Its name (not its path, which differs between machines), kind and size in bytes."""
        return {"name": self.path.name, "kind": self.kind, "bytes": self.n_bytes}

    def read(self, name: str) -> bytes | None:
        """All bytes of the file ``name``; None where there is none."""
        member = self.member(name)
        if member is None:
            return None
        with self.reader.open() as read:
            try:
                return read(member)
            except BadPatchError as error:
                raise ArchiveError(f"archive corrupt: {error}; fetch it again") from error
