"""The packed store that ``ingest`` leaves: pixels by subset, and the table of patches."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from src import paths
from src.data.tiff import PATCH_SHAPE
from src.system.durable import verify_file
from src.system.errors import ProjectError

if TYPE_CHECKING:
    import pandas as pd

TABLE_FILE = "patches.parquet"
_AGAIN = "run: dvc repro --force ingest"


class PackedStoreError(ProjectError):
    """The packed store is missing or isn't what ``ingest`` writes."""


def open_pixels(subset: str, folder: Path = paths.INGEST) -> NDArray[np.uint8]:
    """The (n, 96, 96, 3) uint8 pixels of ``train`` or ``test``, memory-mapped, read-only.

    The file is hashed against its manifest first, so that a single flipped bit is refused: about
    a second a GB, once a process.

    Raises
    ------
    PackedStoreError
        The file is missing or holds something else.
    IntegrityError
        It isn't the file that ``ingest`` wrote.
    """
    path = folder / f"{subset}.npy"
    if not path.is_file():
        raise PackedStoreError(f"packed pixels not found: {path}; run: dvc repro ingest")
    verify_file(path)
    try:
        pixels: NDArray[np.uint8] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError) as error:
        raise PackedStoreError(f"not packed pixels: {path} ({error}); {_AGAIN}") from error
    if pixels.dtype != np.uint8 or pixels.shape[1:] != PATCH_SHAPE:
        raise PackedStoreError(
            f"not packed pixels: {path} is {pixels.dtype} {pixels.shape}, expected uint8 "
            f"(n, 96, 96, 3); {_AGAIN}"
        )
    return pixels


def read_patches(folder: Path = paths.INGEST) -> "pd.DataFrame":
    """The table of patches (columns: see ``src.data.patch_table``), verified and checked.

    Raises
    ------
    PackedStoreError
        The table is missing or torn.
    IntegrityError
        It isn't the file that ``ingest`` wrote.
    SchemaError
        A column is missing, or holds what it may not.
    """
    from src.data.schemas import check_patches

    path = folder / TABLE_FILE
    if not path.is_file():
        raise PackedStoreError(f"table of patches not found: {path}; run: dvc repro ingest")
    verify_file(path)
    return check_patches(_read_table(path), path.name, _AGAIN)


def write_patches(frame: "pd.DataFrame", folder: Path) -> None:
    """Check the table of patches and write it into ``folder``; the folder's manifest comes later.

    Raises
    ------
    SchemaError
        A column is missing, or holds what it may not.
    """
    from src.data.schemas import check_patches

    checked = check_patches(frame, TABLE_FILE, "please report this")
    checked.to_parquet(folder / TABLE_FILE, index=False)


def _read_table(path: Path) -> "pd.DataFrame":
    import pandas as pd
    from pyarrow import ArrowException

    try:
        return pd.read_parquet(path)
    except (ArrowException, OSError, ValueError) as error:
        raise PackedStoreError(f"not a table of patches: {path} ({error}); {_AGAIN}") from error
