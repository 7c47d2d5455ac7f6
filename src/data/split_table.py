"""``split.parquet``: which split and which group each labelled patch belongs to.

======  ====  ==============================================================
column  type  meaning
======  ====  ==============================================================
id      str   of every labelled patch, each once
split   str   train, val or holdout
group   str   what stays on one side: a slide, or a stand-in (``split.json``)
======  ====  ==============================================================
"""

from pathlib import Path
from typing import TYPE_CHECKING

from src import paths
from src.system.durable import verify_file
from src.system.errors import ProjectError

if TYPE_CHECKING:
    import pandas as pd

SINGLE = "patch:"  # begins the name of a group that has neither slide nor stain cluster

_AGAIN = "run: dvc repro --force split"


class SplitTableError(ProjectError):
    """The table of splits is missing or torn."""


def read_split(path: Path = paths.SPLIT) -> "pd.DataFrame":
    """The table of splits, verified against its manifest and checked.

    Raises
    ------
    SplitTableError
        It is missing or torn.
    IntegrityError
        It isn't the file that ``split`` wrote.
    SchemaError
        A column is missing, or holds what it may not.
    """
    import pandas as pd
    from pyarrow import ArrowException

    from src.data.schemas import check_split

    if not path.is_file():
        raise SplitTableError(f"table of splits not found: {path}; run: dvc repro split")
    verify_file(path)
    try:
        frame = pd.read_parquet(path)
    except (ArrowException, OSError, ValueError) as error:
        raise SplitTableError(f"not a table of splits: {path} ({error}); {_AGAIN}") from error
    return check_split(frame, path.name, _AGAIN)


def real_groups(groups: "pd.Series", group_by: str) -> "pd.Series":
    """``groups`` (n,), null where one isn't what ``group_by`` says it is.

    Only where single patches are the groups is a patch of unknown slide or stain one.
    """
    return groups if group_by == "patch" else groups.mask(groups.str.startswith(SINGLE))


def write_split(frame: "pd.DataFrame", path: Path) -> None:
    """Check the table of splits and write it; the folder's manifest comes later.

    Raises
    ------
    SchemaError
        A column is missing, or holds what it may not.
    """
    from src.data.schemas import check_split

    check_split(frame, path.name, "please report this").to_parquet(path, index=False)
