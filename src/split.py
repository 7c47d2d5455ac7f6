"""Stage ``split``: labelled patches -> train, val and holdout, by whole groups.

Reads ``data/ingest/patches.parquet``; writes ``data/split``.
"""

from logging import Logger
from pathlib import Path
from typing import TYPE_CHECKING, Any

from src import paths
from src.params import SplitParams, load_params
from src.system.cli import run
from src.system.log import configure, get_logger

if TYPE_CHECKING:
    import pandas as pd

    from src.data.grouping import Grouping


def main() -> None:
    """Split labelled patches into train, val and holdout by whole groups (params: split)."""
    params = load_params()
    configure(params.runtime.verbosity)
    split(params.split, ingest=paths.INGEST, destination=paths.SPLIT_DIR, log=get_logger("split"))


def split(params: SplitParams, *, ingest: Path, destination: Path, log: Logger) -> dict[str, Any]:
    """Write ``split.parquet`` and ``split.json`` to ``destination``; return the latter.

    Raises
    ------
    SplitError
        The groups can't be split so that each split holds both classes.
    """
    import pandas as pd

    from src.data.grouping import group_patches
    from src.data.packed import read_patches
    from src.data.splitting import Fractions, split_groups
    from src.system.durable import replacing_folder, write_json

    patches = read_patches(ingest)
    labelled = patches[patches["subset"] == "train"].sort_values("id", ignore_index=True)
    grouping = group_patches(labelled["id"], labelled["slide"], labelled["sha256"])
    splits = split_groups(
        labels=labelled["label"].to_numpy(dtype="uint8"),
        groups=grouping.names,
        train_only=grouping.train_only,
        fractions=Fractions(val=params.val_fraction, holdout=params.holdout_fraction),
        seed=params.seed,
    )
    frame = pd.DataFrame({"id": labelled["id"], "split": splits, "group": grouping.names})
    with replacing_folder(destination) as folder:
        frame.to_parquet(folder / paths.SPLIT.name, index=False)
        written = pd.read_parquet(folder / paths.SPLIT.name)
        report = _report(labelled, written, grouping, params)
        write_json(folder / paths.SPLIT_REPORT.name, report)
    _log_report(report, log)
    return report


def _report(
    labelled: "pd.DataFrame", written: "pd.DataFrame", grouping: "Grouping", params: SplitParams
) -> dict[str, Any]:
    from src.data.splitting import audit_leaks, summarise_splits

    audit = audit_leaks(labelled, written)
    if any(audit.values()):
        raise RuntimeError(f"the split leaks: {audit}")
    summary = summarise_splits(labelled, written)
    wanted = {"val": params.val_fraction, "holdout": params.holdout_fraction}
    wanted["train"] = round(1.0 - sum(wanted.values()), 12)
    n = len(labelled)
    return {
        "seed": params.seed,
        "group_by": "slide" if grouping.n_slides else "patch",
        "slide_disjoint": grouping.slide_disjoint,
        "n_patches": n,
        "tumour_fraction": float(labelled["label"].mean()),
        "n_slides": grouping.n_slides,
        "n_slides_joined": grouping.n_slides_joined,
        "n_patches_without_slide": grouping.n_without_slide,
        "n_patches_with_identical_pixels": grouping.n_duplicates,
        "fraction_wanted": wanted,
        "fraction_got": {name: part["n_patches"] / n for name, part in summary.items()},
        "splits": summary,
        "leak_audit": audit,
    }


def _log_report(report: dict[str, Any], log: Logger) -> None:
    noun = "slides" if report["group_by"] == "slide" else "groups"
    for name, part in report["splits"].items():
        log.info(
            f"{name} {part['n_patches']:,} patches from {part['n_groups']:,} {noun}, "
            f"{part['tumour_fraction']:.1%} tumour".replace("%", " %")
        )
    if report["n_slides_joined"]:
        log.warning(
            f"{report['n_slides_joined']:,} slides share identical pixels with another slide "
            "and are kept together"
        )
    if report["group_by"] == "patch":
        log.warning(
            "no slide ids: patches of one slide may lie in two splits, so scores will flatter "
            "(slide_disjoint: false)"
        )
    elif report["n_patches_without_slide"]:
        log.warning(
            f"{report['n_patches_without_slide']:,} patches of unknown slide stay in train; their "
            "slides may also be in val or holdout (slide_disjoint: false)"
        )


if __name__ == "__main__":
    run(main)
