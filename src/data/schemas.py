"""What ``patches.parquet`` and ``split.parquet`` must look like: checked on write and on read.

The meaning of each column stands in ``src.data.patch_table`` and ``src.data.splitting``; here
stand types, ranges and what must agree between columns.
"""

import functools
from typing import TYPE_CHECKING

from src.data.optical_density import COVARIANCE_COLUMNS, MEAN_COLUMNS
from src.data.terms import PATCH_ID
from src.system.errors import ProjectError

if TYPE_CHECKING:
    import pandas as pd
    import pandera.pandas as pa

SUBSETS = ("train", "test")
SPLITS = ("train", "val", "holdout")

_ID = f"^{PATCH_ID}$"
_SHA256 = r"^[0-9a-f]{64}$"
_MAX_DENSITY = 2.5  # of black: log10(256)


class SchemaError(ProjectError):
    """A table isn't what its schema says."""


def check_patches(frame: "pd.DataFrame", name: str, remedy: str) -> "pd.DataFrame":
    """The table of patches, if it is one; ``name`` and ``remedy`` stand in the error.

    Raises
    ------
    SchemaError
        Column, rule and what came, in one line.
    """
    return _check(_patches_schema(), frame, name, remedy)


def check_split(frame: "pd.DataFrame", name: str, remedy: str) -> "pd.DataFrame":
    """The table of splits, if it is one; errors as of :func:`check_patches`."""
    return _check(_split_schema(), frame, name, remedy)


def _check(
    schema: "pa.DataFrameSchema", frame: "pd.DataFrame", name: str, remedy: str
) -> "pd.DataFrame":
    from pandera.errors import SchemaError as PanderaError
    from pandera.errors import SchemaErrors as PanderaErrors

    try:
        return schema.validate(frame)
    except PanderaError as error:
        raise SchemaError(f"{name}: {_problem(error)}; {remedy}") from error
    except PanderaErrors as error:  # raised of unknown columns, whatever was asked for
        first = error.schema_errors[0]
        raise SchemaError(f"{name}: {_problem(first)}; {remedy}") from error


def _problem(error: "pa.errors.SchemaError") -> str:
    from pandera.errors import SchemaErrorReason as Reason

    column = getattr(error.schema, "name", None)
    cases = error.failure_cases
    rows = getattr(cases, "failure_case", None)  # of whole-table checks there are none
    case = str(cases)[:80] if rows is None else str(rows.iloc[0])[:80]
    reason = error.reason_code
    if reason in (Reason.COLUMN_NOT_IN_DATAFRAME, Reason.COLUMN_NOT_IN_SCHEMA):
        kind = "missing" if reason is Reason.COLUMN_NOT_IN_DATAFRAME else "unknown"
        return f"{kind} column {case}"
    if column is None:
        return str(error.check.error)
    rules = {
        Reason.SERIES_CONTAINS_DUPLICATES: "must not repeat",
        Reason.SERIES_CONTAINS_NULLS: "must not be null",
        Reason.WRONG_DATATYPE: f"must be of type {getattr(error.schema, 'dtype', '')}",
    }
    rule = rules.get(reason) or error.check.error
    return f"column {column} {rule} (got {case!r})"


@functools.cache
def _patches_schema() -> "pa.DataFrameSchema":
    import pandera.pandas as pa

    density = {
        **{
            name: _column("float32", _in_range(0, _MAX_DENSITY), null=True) for name in MEAN_COLUMNS
        },
        **{
            name: _column("float32", _in_range(-(_MAX_DENSITY**2), _MAX_DENSITY**2), null=True)
            for name in COVARIANCE_COLUMNS
        },
    }
    return pa.DataFrameSchema(
        {
            "id": _column("str", _matches(_ID, "must be 40 lower-case hex digits"), unique=True),
            "subset": _column("str", _one_of(SUBSETS)),
            "row": _column("int64", _in_range(-1, None)),
            "label": _column("Int8", _in_range(0, 1), null=True),
            "slide": _column("str", null=True),
            "sha256": _column("str", _matches(_SHA256, "must be 64 hex digits"), null=True),
            "flags": _column("str"),
            "submission_order": _column("Int64", _in_range(0, None), null=True),
            "phash": _column("UInt64", null=True),
            **density,
        },
        checks=[
            pa.Check(
                lambda f: bool((f["label"].notna() == (f["subset"] == "train")).all()),
                error="label must be there in train, and only there",
            ),
            pa.Check(
                lambda f: bool((f["submission_order"].notna() == (f["subset"] == "test")).all()),
                error="submission_order must be there in test, and only there",
            ),
            pa.Check(
                lambda f: bool((f["sha256"].notna() == (f["row"] >= 0)).all()),
                error="sha256 must be there for every packed patch, and only there",
            ),
            pa.Check(_rows_are_packed, error="row must count 0, 1, 2 … within each subset"),
        ],
        strict=True,
    )


@functools.cache
def _split_schema() -> "pa.DataFrameSchema":
    import pandera.pandas as pa

    return pa.DataFrameSchema(
        {
            "id": _column("str", _matches(_ID, "must be 40 lower-case hex digits"), unique=True),
            "split": _column("str", _one_of(SPLITS)),
            "group": _column("str"),
        },
        checks=[
            pa.Check(
                lambda f: not f[["group", "split"]].drop_duplicates()["group"].duplicated().any(),
                error="group must lie in one split as a whole",
            )
        ],
        strict=True,
    )


def _rows_are_packed(frame: "pd.DataFrame") -> bool:
    packed = frame.loc[frame["row"] >= 0, ["subset", "row"]]
    return all(
        rows.is_unique and int(rows.max()) == len(rows) - 1
        for _, rows in packed.groupby("subset")["row"]
    )


def _column(
    kind: str, check: "pa.Check | None" = None, *, null: bool = False, unique: bool = False
) -> "pa.Column":
    import pandera.pandas as pa

    return pa.Column(kind, check, nullable=null, unique=unique)


def _matches(pattern: str, rule: str) -> "pa.Check":
    import pandera.pandas as pa

    return pa.Check.str_matches(pattern, error=rule)


def _one_of(values: tuple[str, ...]) -> "pa.Check":
    import pandera.pandas as pa

    return pa.Check.isin(values, error=f"must be one of {', '.join(values)}")


def _in_range(low: float, high: float | None) -> "pa.Check":
    import pandera.pandas as pa

    if high is None:
        return pa.Check.ge(low, error=f"must be ≥ {low:g}")
    return pa.Check.in_range(low, high, error=f"must be {low:g} to {high:g}")
