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
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

    from src.data.grouping import Grouping

MIN_GROUPS_PER_CLASS = 5
MAX_RELATIVE_MISS = 0.3  # of a split's share; few or uneven groups can't be dealt out better


def main() -> None:
    """Split labelled patches into train, val and holdout by whole groups (params: split)."""
    params = load_params()
    configure(params.runtime.verbosity)
    split(params.split, ingest=paths.INGEST, destination=paths.SPLIT_DIR, log=get_logger("split"))


def split(params: SplitParams, *, ingest: Path, destination: Path, log: Logger) -> dict[str, Any]:
    """Write ``split.parquet`` and ``split.json`` to ``destination``; return the latter.

    Raises
    ------
    GroupingError
        ``split.group_by`` is slide, and no slide is known.
    SplitError
        The groups can't be split so that each split holds both classes.
    """
    import pandas as pd

    from src.data.grouping import group_patches
    from src.data.packed import read_patches
    from src.data.split_table import read_split, write_split
    from src.system.durable import replacing_folder, write_json, write_manifest

    patches = read_patches(ingest)
    labelled = patches[patches["subset"] == "train"].sort_values("id", ignore_index=True)
    grouping = group_patches(labelled, group_by=params.group_by, seed=params.seed)
    frame = pd.DataFrame(
        {
            "id": labelled["id"],
            "split": pd.array(_assign(labelled, grouping, params), dtype="str"),
            "group": pd.array(grouping.names, dtype="str"),
        }
    )
    with replacing_folder(destination) as folder:
        write_split(frame, folder / paths.SPLIT.name)
        write_manifest(folder)
        # what is reported is what can be read back
        written = read_split(folder / paths.SPLIT.name)
        report = _report(labelled.assign(near=grouping.near), written, grouping, params)
        write_json(folder / paths.SPLIT_REPORT.name, report)
    _log_report(report, log)
    return report


def _assign(
    labelled: "pd.DataFrame", grouping: "Grouping", params: SplitParams
) -> "NDArray[np.str_]":
    from src.data.splitting import Fractions, split_folds, split_groups

    labels = labelled["label"].to_numpy(dtype="uint8")
    names, train_only = grouping.names, grouping.train_only
    if params.n_folds is not None:
        return split_folds(
            labels=labels,
            groups=names,
            train_only=train_only,
            n_folds=params.n_folds,
            fold=params.fold,
            seed=params.seed,
        )
    fractions = Fractions(val=params.val_fraction, holdout=params.holdout_fraction)
    return split_groups(
        labels=labels, groups=names, train_only=train_only, fractions=fractions, seed=params.seed
    )


def _report(
    labelled: "pd.DataFrame", written: "pd.DataFrame", grouping: "Grouping", params: SplitParams
) -> dict[str, Any]:
    from src.data.grouping import GROUPS_ARE
    from src.data.split_audit import audit_leaks, summarise_splits
    from src.data.split_table import real_groups

    audit = audit_leaks(labelled, written, by_slide=grouping.group_by == "slide")
    if any(audit.values()):
        raise RuntimeError(f"the split leaks: {audit}")
    summary = summarise_splits(labelled, written, group_by=grouping.group_by)
    n = len(labelled)
    report = {
        "seed": params.seed,
        "group_by": grouping.group_by,
        "groups_are": GROUPS_ARE[grouping.group_by],
        "slide_disjoint": grouping.slide_disjoint,
        "n_patches": n,
        "tumour_fraction": float(labelled["label"].mean()),
        "n_groups": int(real_groups(written["group"], grouping.group_by).nunique()),
        "n_slides": grouping.n_slides,
        "n_groups_joined": grouping.n_slides_joined,
        "n_patches_without_slide": grouping.n_without_slide,
        "n_patches_without_stain": grouping.n_without_stain,
        "n_patches_kept_in_train": int(grouping.train_only.sum()),
        "n_patches_with_identical_pixels": grouping.n_duplicates,
        "n_patches_with_near_duplicates": grouping.n_near_duplicates,
        **_wanted(params),
        "fraction_got": {name: part["n_patches"] / n for name, part in summary.items()},
        "splits": summary,
        "leak_audit": audit,
    }
    return report | {"warnings": _warnings(report)}


def _wanted(params: SplitParams) -> dict[str, Any]:
    if params.n_folds is not None:
        share = 1 / params.n_folds
        wanted = {"val": share, "holdout": share}
    else:
        wanted = {"val": params.val_fraction, "holdout": params.holdout_fraction}
    wanted["train"] = round(1.0 - sum(wanted.values()), 12)
    return {
        "n_folds": params.n_folds,
        "fold": None if params.n_folds is None else params.fold,
        "fraction_wanted": wanted,
    }


def _warnings(report: dict[str, Any]) -> list[str]:
    """What a reader of any figure made on this split should know."""
    warnings = []
    if report["n_groups_joined"]:
        warnings.append(
            f"{report['n_groups_joined']:,} groups share identical or nearly identical patches "
            "with another group and are kept together"
        )
    if report["group_by"] == "stain":
        warnings.append(
            "groups are stain clusters, a stand-in for slides: patches of one slide may lie in "
            "two splits, so scores may flatter (slide_disjoint: false)"
        )
    elif report["group_by"] == "patch":
        warnings.append(
            "groups are single patches: patches of one slide lie in several splits, so scores "
            "will flatter (slide_disjoint: false)"
        )
    elif report["n_patches_without_slide"]:
        warnings.append(
            f"{report['n_patches_without_slide']:,} patches of unknown slide stay in train; their "
            "slides may also be in val or holdout (slide_disjoint: false)"
        )
    if report["n_patches_without_stain"]:
        warnings.append(
            f"{report['n_patches_without_stain']:,} blank patches show no stain and stay in train"
        )
    for name, wanted in report["fraction_wanted"].items():
        got = report["fraction_got"][name]
        if abs(got - wanted) > MAX_RELATIVE_MISS * wanted:
            warnings.append(
                f"{name} holds {100 * got:.1f} % of the patches, {100 * wanted:.1f} % were wanted: "
                f"{report['n_patches_kept_in_train']:,} patches must stay in train, and groups go "
                "as a whole"
            )
    for name, part in report["splits"].items():
        if name == "train" and report["n_patches_kept_in_train"]:
            continue  # nobody knows how many slides those are of
        if part["min_groups_per_class"] < MIN_GROUPS_PER_CLASS:
            warnings.append(
                f"{name} holds one class in only {part['min_groups_per_class']:,} groups: figures "
                f"on fewer than {MIN_GROUPS_PER_CLASS} are not to be trusted"
            )
    return warnings


def _log_report(report: dict[str, Any], log: Logger) -> None:
    for name, part in report["splits"].items():
        log.info(
            f"{name} {part['n_patches']:,} patches from {part['n_groups']:,} groups "
            f"({report['groups_are']}), {100 * part['tumour_fraction']:.1f} % tumour"
        )
    for warning in report["warnings"]:
        log.warning(warning)


if __name__ == "__main__":
    run(main)
