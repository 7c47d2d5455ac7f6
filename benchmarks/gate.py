"""How often chance alone passes the gate: two random scores, compared as a version and its rival.

``python -m benchmarks.gate``: neither score knows the labels, so a 95 % interval of their AUROC
difference should lie above 0 in 2.5 % of the cases. Clustered bootstrap intervals of few groups do
so more often, which is why the gate's interval holds DeLong's as well, and why there is
``register.min_groups``. Twice: patches that are independent, and patches that share a group's own
leaning in score and label, which DeLong doesn't know of.
"""

import argparse

import numpy as np
import pandas as pd

from src.deciding import difference
from src.evaluation.intervals import paired_difference
from src.params import EvaluateParams, load_params
from src.paths import ROOT

N_GROUPS = (2, 3, 5, 8, 16)
PATCHES_A_GROUP = 50
N_RESAMPLES = 500
LEANINGS = (0.0, 0.5)  # standard deviation of a group's own part, that of a patch being 1


def main() -> None:
    """Print one row a number of groups."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--simulations", type=int, default=500, help="a cell of the table")
    n_simulations = parser.parse_args().simulations
    evaluate = load_params(ROOT / "presets" / "sample.yaml").evaluate
    evaluate = evaluate.model_copy(update={"n_resamples": N_RESAMPLES})
    print(f"{n_simulations:,} simulations of {PATCHES_A_GROUP} patches a group, nominal 2.5 %")
    print("| groups | clustered alone | the gate | groups lean: clustered alone | the gate |")
    print("|---|---|---|---|---|")
    for n_groups in N_GROUPS:
        cells = []
        for leaning in LEANINGS:
            rng = np.random.default_rng(n_groups)
            above = [_above_zero(n_groups, leaning, evaluate, rng) for _ in range(n_simulations)]
            cells += [f"{share:.1%}" for share in np.mean(above, axis=0)]
        print(f"| {n_groups} | {' | '.join(cells)} |", flush=True)


def _above_zero(
    n_groups: int, leaning: float, evaluate: EvaluateParams, rng: np.random.Generator
) -> tuple[bool, bool]:
    """Whether the clustered interval, and whether the gate's, lies above 0."""
    groups = np.repeat(np.arange(n_groups), PATCHES_A_GROUP)
    drawn = (rng.normal(leaning * rng.normal(size=n_groups)[groups]) for _ in range(3))
    label, score, other = drawn
    rows = pd.DataFrame({"label": (label > 0.25).astype(int), "group": groups})
    clustered = paired_difference(
        rows["label"],
        score,
        other,
        groups,
        n_resamples=N_RESAMPLES,
        confidence=evaluate.confidence,
        rng=np.random.default_rng(evaluate.seed),
    )
    return clustered.above_zero, difference(rows, score, other, evaluate).above_zero


if __name__ == "__main__":
    main()
