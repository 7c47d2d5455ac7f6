"""What colour alone tells of the label: ``python -m benchmarks.colour_floor`` (two minutes).

Three classifiers on the colour histograms of the evaluation's baseline, on generated archives of
three seeds, whole slides held out. Near 0.5: colour tells nothing, as it should.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import roc_auc_score

from src.drawing.patches import draw_chunk
from src.drawing.plan import plan_subset
from src.evaluation.baseline import TITLES, colour_histograms, fit_baselines

HOLDOUT_FRACTION = 0.25  # of the slides


def main(patches: int = 3000, slides: int = 48, seeds: int = 3) -> None:
    """Print the AUROC on the held-out slides for each seed, and the mean over seeds."""
    table = Table("classifier", *(f"seed {seed}" for seed in range(1, seeds + 1)), "mean")
    aurocs: dict[str, list[float]] = {}
    for seed in range(1, seeds + 1):
        plan = plan_subset(seed=seed, subset="train", n_patches=patches, n_slides=slides)
        pixels = np.concatenate([draw_chunk(chunk).pixels for chunk in plan.chunks()])
        histograms = colour_histograms(pixels, np.arange(patches))
        is_train = plan.slide >= HOLDOUT_FRACTION * slides
        for name, model in _fitted(histograms[is_train], plan.labels[is_train], seed):
            probability = model.predict_proba(histograms[~is_train])[:, 1]
            auroc = roc_auc_score(plan.labels[~is_train], probability)
            aurocs.setdefault(name, []).append(float(auroc))
    for name, values in aurocs.items():
        table.add_row(name, *(f"{value:.3f}" for value in (*values, np.mean(values))))
    Console(width=100).print(table)


def _fitted(histograms: Any, labels: Any, seed: int) -> Iterator[tuple[str, Any]]:
    for name, model in fit_baselines(histograms, labels, seed=seed).items():
        yield TITLES[name], model
    forest = RandomForestClassifier(300, min_samples_leaf=3, n_jobs=-1, random_state=seed)
    yield "random forest", forest.fit(histograms, labels)


if __name__ == "__main__":
    typer.run(main)
