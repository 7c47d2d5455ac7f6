"""Stage ``split``: labelled patches -> train, val and holdout, by whole groups.

Reads ``data/ingest/patches.parquet``; writes ``data/split``.
"""

from __future__ import annotations

from src import paths
from src.params import load_params
from src.system.cli import run
from src.system.durable import replacing_folder, write_json, write_manifest
from src.system.log import configure, get_logger


def main() -> None:
    """Split labelled patches into train, val and holdout by whole groups (params: split)."""
    import pandas as pd

    from src.data.audit import split_report
    from src.data.dataset import read_split, write_split
    from src.data.groups import group_patches
    from src.data.patches import read_patches
    from src.data.splits import split_folds, split_groups

    params = load_params()
    configure(params.runtime.verbosity)
    log = get_logger("split")

    patches = read_patches(paths.INGEST)
    labelled = patches[patches["subset"] == "train"].sort_values("id", ignore_index=True)
    grouping = group_patches(labelled, group_by=params.split.group_by, seed=params.split.seed)
    labels = labelled["label"].to_numpy(dtype="uint8")
    if params.split.n_folds is None:
        splits = split_groups(
            labels=labels,
            groups=grouping.names,
            train_only=grouping.train_only,
            val_fraction=params.split.val_fraction,
            holdout_fraction=params.split.holdout_fraction,
            seed=params.split.seed,
        )
    else:
        splits = split_folds(
            labels=labels,
            groups=grouping.names,
            train_only=grouping.train_only,
            n_folds=params.split.n_folds,
            fold=params.split.fold,
            seed=params.split.seed,
        )
    frame = pd.DataFrame(
        {
            "id": labelled["id"],
            "split": pd.array(splits, dtype="str"),
            "group": pd.array(grouping.names, dtype="str"),
        }
    )
    with replacing_folder(paths.SPLIT_DIR) as folder:
        write_split(frame, folder / paths.SPLIT.name)
        write_manifest(folder)
        # what is reported is what can be read back
        written = read_split(folder / paths.SPLIT.name)
        report = split_report(labelled, written, grouping, params.split)
        write_json(folder / paths.SPLIT_REPORT.name, report)

    for name, part in report["splits"].items():
        log.info(
            f"{name} {part['n_patches']:,} patches from {part['n_groups']:,} groups "
            f"({report['groups_are']}), {100 * part['tumour_fraction']:.1f} % tumour"
        )
    for warning in report["warnings"]:
        log.warning(warning)


if __name__ == "__main__":
    run(main)
