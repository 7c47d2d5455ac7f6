"""The packed store that ``ingest`` leaves: pixels by subset, and the table of patches."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from src import paths
from src.data.tiff import PATCH_SHAPE
from src.system.durable import verify_folder
from src.system.errors import ProjectError

if TYPE_CHECKING:
    import pandas as pd

TABLE_FILE = "patches.parquet"


class PackedStoreError(ProjectError):
    """The packed store is missing or isn't what ``ingest`` writes."""


def open_pixels(
    subset: str, folder: Path = paths.INGEST, *, verify: bool = False
) -> NDArray[np.uint8]:
    """The (n, 96, 96, 3) uint8 pixels of ``train`` or ``test``, memory-mapped, read-only.

    Parameters
    ----------
    verify
        Hash every file of the store against its manifest first, so that a single flipped bit is
        refused: about a second a GB. Stages that train on the pixels or publish results ask for it.

    Raises
    ------
    PackedStoreError
        The file is missing or holds something else.
    IntegrityError
        With ``verify``: a file isn't the one that ``ingest`` wrote.
    """
    path = folder / f"{subset}.npy"
    if not path.is_file():
        raise PackedStoreError(f"packed pixels not found: {path}; run: dvc repro ingest")
    if verify:
        verify_folder(folder)
    try:
        pixels: NDArray[np.uint8] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError) as error:
        raise PackedStoreError(
            f"not packed pixels: {path} ({error}); run: dvc repro --force ingest"
        ) from error
    if pixels.dtype != np.uint8 or pixels.shape[1:] != PATCH_SHAPE:
        raise PackedStoreError(
            f"not packed pixels: {path} is {pixels.dtype} {pixels.shape}, expected uint8 "
            f"(n, 96, 96, 3); run: dvc repro --force ingest"
        )
    return pixels


def read_patches(folder: Path = paths.INGEST) -> "pd.DataFrame":
    """The table of patches (columns: see ``src.data.patch_table``).

    Raises
    ------
    PackedStoreError
        The table is missing or torn.
    """
    import pandas as pd
    from pyarrow import ArrowException

    path = folder / TABLE_FILE
    if not path.is_file():
        raise PackedStoreError(f"table of patches not found: {path}; run: dvc repro ingest")
    try:
        return pd.read_parquet(path)
    except (ArrowException, OSError, ValueError) as error:
        raise PackedStoreError(
            f"not a table of patches: {path} ({error}); run: dvc repro --force ingest"
        ) from error
