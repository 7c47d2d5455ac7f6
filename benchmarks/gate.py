"""How often chance alone passes the gate: two random scores, compared as a version and its rival.

``python -m benchmarks.gate``: neither score knows the labels, so a 95 % interval of their AUROC
difference should lie above 0 in 2.5 % of the cases. Clustered bootstrap intervals of few groups do
so more often, which is why ``register.min_groups`` is there.
"""

import argparse

import numpy as np

from src.evaluation.intervals import paired_difference

N_GROUPS = (2, 3, 5, 8, 16, 30)
PATCHES_A_GROUP = 50
PREVALENCE = 0.4
N_RESAMPLES = 1_000


def main() -> None:
    """Print one row a number of groups."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--simulations", type=int, default=1_000, help="a number of groups")
    n_simulations = parser.parse_args().simulations
    print(f"{n_simulations:,} simulations of {PATCHES_A_GROUP} patches a group, nominal 2.5 %")
    print("| groups | interval above 0 |")
    print("|---|---|")
    for n_groups in N_GROUPS:
        rng = np.random.default_rng(n_groups)
        n_above = sum(_above_zero(n_groups, rng) for _ in range(n_simulations))
        print(f"| {n_groups} | {n_above / n_simulations:.1%} |", flush=True)


def _above_zero(n_groups: int, rng: np.random.Generator) -> bool:
    groups = np.repeat(np.arange(n_groups), PATCHES_A_GROUP)
    labels = rng.random(len(groups)) < PREVALENCE
    difference = paired_difference(
        labels,
        rng.random(len(groups)),
        rng.random(len(groups)),
        groups,
        n_resamples=N_RESAMPLES,
        confidence=0.95,
        rng=rng,
    )
    return difference.above_zero


if __name__ == "__main__":
    main()
