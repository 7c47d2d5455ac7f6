"""What the gate says of the model where the holdout labels are shuffled: nothing may be found.

``python -m benchmarks.shuffled_labels`` after ``dvc repro``: reads
``reports/evaluate/predictions.parquet``. AUROC has to lie around 0.5, and the rules may promote
such a version, as a first one, only about as often as ``python -m benchmarks.gate`` says of that
many groups.
"""

import argparse

import numpy as np
import pandas as pd

from src import paths
from src.evaluation.comparison import difference, groups_by_class, read_holdout
from src.evaluation.looks import Look, holdout_sha256
from src.evaluation.metrics import auroc
from src.evaluation.promotion import Decision, Evidence, decide
from src.params import Params, load_params


def main() -> None:
    """Print the spread of AUROC and how often the rules would promote."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shuffles", type=int, default=200)
    options = parser.parse_args()
    params = load_params()
    holdout = read_holdout(paths.PREDICTIONS)
    print(f"{len(holdout):,} holdout patches, {holdout['group'].nunique():,} groups")
    print(_row("labels as they are", [holdout], params))
    rng = np.random.default_rng(0)
    print(
        _row("labels shuffled", [shuffled(holdout, rng) for _ in range(options.shuffles)], params)
    )


def shuffled(holdout: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    """``holdout`` with its labels in another order."""
    return holdout.assign(label=rng.permutation(holdout["label"].to_numpy()))


def decision(holdout: pd.DataFrame, params: Params) -> Decision:
    """What the rules say of the version that gave ``probability``, as the first one ever judged."""
    look = Look(1, holdout_sha256(holdout))
    confidence = look.confidence(params.evaluate.confidence)
    return decide(
        Evidence(
            to_baseline=difference(holdout, holdout["baseline_probability"], confidence),
            to_champion=None,
            margin=params.register_.margin,
            n_groups=groups_by_class(holdout),
            min_groups=params.register_.min_groups,
            look=look,
            reload_error=0.0,
            golden_error=0.0,
        )
    )


def _row(title: str, tables: list[pd.DataFrame], params: Params) -> str:
    aurocs = np.array([auroc(rows["label"], rows["probability"]) for rows in tables])
    decisions = [decision(rows, params) for rows in tables]
    n_beats = sum(made.checks["beats_baseline"].held for made in decisions)
    n_promoted = sum(made.promote for made in decisions)
    low, high = np.quantile(aurocs, [0.025, 0.975])
    return (
        f"{title}: {len(tables):,} times, AUROC {aurocs.mean():.3f} "
        f"(95 % {low:.3f} to {high:.3f}), beats colour {n_beats}, promoted {n_promoted}"
    )


if __name__ == "__main__":
    main()
