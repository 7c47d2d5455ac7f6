"""Several archives as one: the first with its test images, the others for their labels alone."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from src.data.archives import IMAGE_SUFFIX, Archive, ArchiveError, Member, Read, Reader


@dataclass(frozen=True)
class CombinedReader:
    """Reads each member by the reader of the archive it came from (``Member.source``)."""

    readers: tuple[Reader, ...]

    @contextmanager
    def open(self) -> Iterator[Read]:
        with ExitStack() as stack:
            reads = [stack.enter_context(reader.open()) for reader in self.readers]
            yield lambda member: reads[member.source](member)


class CombinedArchive(Archive):
    """The labelled images of all ``archives``; test images and submission are the first one's.

    Tables of labels and slides are those of its :meth:`parts`.

    Raises
    ------
    ArchiveError
        An id is in two archives.
    """

    kind = "combined"

    def __init__(self, archives: Sequence[Archive]) -> None:
        super().__init__(archives[0].path)
        self._archives = list(archives)
        self.reader = CombinedReader(tuple(archive.reader for archive in archives))
        self.n_bytes = sum(archive.n_bytes for archive in archives)
        self._source_of = self._locate()

    def images(self, folder: str) -> list[str] | None:
        if folder != "train":
            return self._archives[0].images(folder)
        return list(self._source_of)

    def member(self, name: str) -> Member | None:
        folder, _, file = name.partition("/")
        source = self._source_of.get(file.removesuffix(IMAGE_SUFFIX), 0) if folder == "train" else 0
        member = self._archives[source].member(name)
        return None if member is None else member._replace(source=source)

    def read(self, name: str) -> bytes | None:
        return self._archives[0].read(name)

    def parts(self) -> list[Archive]:
        return self._archives

    def summary(self) -> dict[str, Any]:
        first, *others = (archive.summary() for archive in self._archives)
        return {**first, "extra": others}

    def close(self) -> None:
        for archive in self._archives:
            archive.close()

    def _locate(self) -> dict[str, int]:
        source_of: dict[str, int] = {}
        for source, archive in enumerate(self._archives):
            for patch_id in archive.images("train") or []:
                if patch_id in source_of:
                    raise ArchiveError(
                        f"duplicate id {patch_id}: in {self._archives[source_of[patch_id]].path} "
                        f"and in {archive.path}; take one archive out of ingest.extra"
                    )
                source_of[patch_id] = source
        return source_of
