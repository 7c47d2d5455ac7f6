"""How well stain clusters stand in for slides: ``python -m benchmarks.grouping`` (four minutes).

On generated archives the true slides are known. For each, clusters are compared with slides, and
two classifiers that see only colour are scored on the holdout of a random, a stain-grouped and a
slide-grouped split: what the first exceeds the last by is what a leak flatters. An archive's score
is the mean over split seeds; what is repeated independently are the archives, so the spread is
over them.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import typer
from rich.console import Console
from rich.table import Table
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import adjusted_rand_score, roc_auc_score

from src.data.groups import GroupBy, group_patches, stain_clusters
from src.data.patches import ingest_archive, open_pixels, read_patches
from src.data.splits import split_groups
from src.drawing.archive import write_archive
from src.drawing.plan import plan_subset
from src.evaluation.baseline import colour_histograms, fit_baselines
from src.params import IngestParams
from src.system.log import get_logger

MODES: tuple[GroupBy, ...] = ("patch", "stain", "slide")
N_PATCHES = 1_600
FRACTIONS = {"val_fraction": 0.15, "holdout_fraction": 0.15}


def main(archives: int = 12, split_seeds: int = 5, slides: int = 20) -> None:
    """Print both tables; every archive is generated anew, with SLIDES slides."""
    with tempfile.TemporaryDirectory(prefix="hcd-grouping-") as folder:
        stores = [_generate(Path(folder), seed, slides) for seed in range(1, archives + 1)]
        Console(width=100).print(_recovery(stores))
        Console(width=100).print(_flattery(stores, split_seeds))


def _generate(folder: Path, seed: int, n_slides: int) -> Path:
    archive, store = folder / f"{seed}.zip", folder / str(seed)
    train = plan_subset(seed=seed, subset="train", n_patches=N_PATCHES, n_slides=n_slides)
    test = plan_subset(seed=seed, subset="test", n_patches=1, n_slides=1)
    write_archive(archive, train=train, test=test)
    ingest_archive(
        IngestParams(archive=str(archive), max_bad=0),
        store,
        workers=0,
        log=get_logger("benchmark"),
    )
    return store


def _labelled(store: Path) -> pd.DataFrame:
    patches = read_patches(store)
    return patches[patches["subset"] == "train"].sort_values("id", ignore_index=True)


def _recovery(stores: list[Path]) -> Table:
    table = Table("archive", "slides", "clusters", "adjusted Rand index", "slides a cluster")
    for store in stores:
        patches = _labelled(store)
        clusters = stain_clusters(patches, seed=1)
        known = clusters.notna()
        slides, found = patches["slide"][known], clusters[known]
        table.add_row(
            f"seed {store.name}",
            str(slides.nunique()),
            str(found.nunique()),
            f"{adjusted_rand_score(slides, found):.2f}",
            f"{slides.groupby(found).nunique().mean():.1f}",
        )
    return table


def _flattery(stores: list[Path], split_seeds: int) -> Table:
    """Per archive, how far each mode's AUROC is from the slide-grouped one: mean ± sd of them."""
    table = Table("classifier", "split by", "AUROC", "− slide", "|− slide|", "nearer than random")
    for name, of_mode in _archive_scores(stores, split_seeds).items():
        apart = {mode: scores - of_mode["slide"] for mode, scores in of_mode.items()}
        for mode, scores in of_mode.items():
            row = [name, "random patch" if mode == "patch" else mode, _mean_sd(scores, sign="")]
            if mode != "slide":
                row += [_mean_sd(apart[mode], sign="+"), _mean_sd(np.abs(apart[mode]), sign="")]
            if mode == "stain":
                nearer = np.abs(apart["stain"]) < np.abs(apart["patch"])
                row.append(f"{nearer.sum()} of {len(stores)} archives")
            table.add_row(*row)
    return table


def _archive_scores(
    stores: list[Path], split_seeds: int
) -> dict[str, dict[str, np.ndarray[Any, Any]]]:
    """Classifier → mode → mean holdout AUROC over split seeds, one value an archive."""
    found: dict[str, dict[str, list[float]]] = {}
    for store in stores:
        scores: dict[tuple[str, str], list[float]] = {}
        for classifier, mode, auroc in _holdout_scores(store, split_seeds):
            scores.setdefault((classifier, mode), []).append(auroc)
        for (classifier, mode), values in scores.items():
            found.setdefault(classifier, {}).setdefault(mode, []).append(float(np.mean(values)))
    return {c: {m: np.array(v) for m, v in modes.items()} for c, modes in found.items()}


def _mean_sd(values: np.ndarray[Any, Any], *, sign: str) -> str:
    return f"{values.mean():{sign}.3f} ± {values.std(ddof=1):.3f}"


def _holdout_scores(store: Path, split_seeds: int) -> Iterator[tuple[str, str, float]]:
    patches = _labelled(store)
    labels = patches["label"].to_numpy(dtype=np.uint8)
    rows = patches["row"].to_numpy(dtype=np.int64)
    histograms = colour_histograms(open_pixels("train", store), rows)
    for mode in MODES:
        for seed in range(split_seeds):
            grouping = group_patches(patches, group_by=mode, seed=seed)
            splits = split_groups(
                labels=labels,
                groups=grouping.names,
                train_only=grouping.train_only,
                **FRACTIONS,
                seed=seed,
            )
            train, holdout = splits == "train", splits == "holdout"
            for name, model in _fitted(histograms[train], labels[train], seed):
                probability = model.predict_proba(histograms[holdout])[:, 1]
                yield name, mode, float(roc_auc_score(labels[holdout], probability))


def _fitted(
    histograms: np.ndarray[Any, Any], labels: np.ndarray[Any, Any], seed: int
) -> Iterator[tuple[str, Any]]:
    yield "logistic regression", fit_baselines(histograms, labels, seed=seed)["baseline_logistic"]
    forest = RandomForestClassifier(100, min_samples_leaf=3, n_jobs=1, random_state=seed)
    yield "random forest", forest.fit(histograms, labels)


if __name__ == "__main__":
    typer.run(main)
