"""Small, made-up sources of a report, computed as ``evaluate`` computes them."""

import numpy as np
import pandas as pd

from src.evaluation.gallery import choose_patches
from src.evaluation.looks import Look
from src.evaluation.metrics_report import group_table, metrics_report
from src.evaluation.operating_point import OperatingPoint
from src.evaluation.report_facts import Sources

THRESHOLD = 0.4
PICTURE = "data:image/webp;base64,UklGRhYAAABXRUJQVlA4TAoAAAAvAAAAAEX/I/of"


def predictions(n: int = 240, *, n_groups: int = 8, seed: int = 0) -> pd.DataFrame:
    """val and holdout, half each; some probabilities are exactly the threshold."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(2, size=n).astype(np.int8)
    logits = rng.normal(2.0 * labels - 1.0, 1.5)
    probabilities = 1 / (1 + np.exp(-logits))
    probabilities[1::20] = THRESHOLD  # of holdout
    groups = rng.integers(n_groups, size=n)
    return pd.DataFrame(
        {
            "id": [f"{place:040x}" for place in range(n)],
            "split": np.where(np.arange(n) % 2, "holdout", "val"),
            "group": [f"slide {group}" for group in groups],
            "slide": [f"slide {group}" for group in groups],
            "stain": np.where(groups < n_groups // 2, "A #d0a0c0", "B #804080"),
            "label": labels,
            "logit": logits,
            "probability": probabilities,
            "baseline_logistic": rng.uniform(0, 1, n),
            "baseline_trees": np.clip(rng.normal(0.45 + 0.1 * labels, 0.2), 0, 1),
        }
    ).assign(baseline_probability=lambda table: table["baseline_trees"])


def sources(
    table: pd.DataFrame | None = None, *, slide_disjoint: bool = True, **changes: object
) -> Sources:
    """Sources of ``table`` (default: :func:`predictions`), with fields of ``changes`` replaced."""
    table = predictions() if table is None else table
    point = OperatingPoint(
        rule={"min_sensitivity": 0.9}, threshold=THRESHOLD, scale=0.8, shift=-0.3, tta=False
    )
    holdout = table[table["split"] == "holdout"]
    holdout = holdout.sort_values(["probability", "id"]).reset_index(drop=True)
    chosen = choose_patches(holdout, threshold=THRESHOLD, per_set=2)
    values = {
        "metrics": metrics_report(
            table,
            point,
            baseline_threshold=0.4,
            slide_disjoint=slide_disjoint,
            groups_are="slides" if slide_disjoint else "single patches",
            confidence=0.95,
            look=Look(1, "h" * 64),
        ),
        "holdout": holdout,
        "groups": group_table(holdout, threshold=THRESHOLD, confidence=0.95),
        "gallery": {
            "patches": [
                {**row, "centre_share": 0.2}
                for row in chosen[["set", "rank", "id", "label", "probability", "group"]].to_dict(
                    "records"
                )
            ],
            "centre_share": {"mean": 0.3, "area": 1 / 9, "n": 100, "n_without_evidence": 2},
            "cells": [3, 3],
            "seen_px": 96,
        },
        "pictures": dict.fromkeys(chosen["id"], PICTURE),
        "thumbnails": dict.fromkeys(holdout["id"].iloc[::2], PICTURE),
        "fits": (_fit("train", 3), _fit("finetune", 1)),
        "record": {
            "params": {"model": {"weights": "imagenet", **_MODEL}},
            "origin": {"git_commit": "c0ffee", "git_dirty": "false"},
            "dataset": {"digest": "abc.dir", "content_digest": "def"},
        },
        "run_id": "0123",
        "split": {
            "n_patches": 999,
            "n_slides": 8,
            "warnings": [],
            "splits": {
                name: {"n_patches": 333, "tumour_fraction": 0.4, "n_groups": 8}
                for name in ("train", "val", "holdout")
            },
        },
        "ingest": {"archive": {"name": "some.zip"}},
        "explored": {"labels.png": (PICTURE, 10, 10)},
        "digests": {"metrics.json": "00ff"},
    }
    return Sources(**(values | changes))


_MODEL = {"backbone": "resnet50", "centre_crop": None, "input_size": 96, "pooling": "avg"}


def _fit(stage: str, n_epochs: int) -> dict:
    return {
        "stage": stage,
        "best_epoch": 1,
        "stopped_early": False,
        "wall_s": 12.0,
        "trainable_parameters": 10,
        "total_parameters": 20,
        "schedule": {"name": "constant"},
        "class_weights": {"normal": 0.8, "tumour": 1.2},
        "initial_weights_sha256": "aa",
        "final_weights_sha256": "bb",
        "environment": {"python": "3.11", "tensorflow": "2.21"},
        "history": [
            {
                "epoch": epoch,
                "loss": 0.7 / epoch,
                "val_loss": 0.6,
                "val_auroc": 0.8,
                "learning_rate": 0.001,
            }
            for epoch in range(1, n_epochs + 1)
        ],
    }
