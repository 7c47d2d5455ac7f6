"""Packed patches and splits as the stages leave them, small, for what looks at them."""

from __future__ import annotations

import logging

import numpy as np

from src.exploration.findings import open_packed, report_findings, survey_packed
from src.system.durable import write_json, write_manifest
from tests.data.tables import patches_frame, write_split_folder, write_store

LOG = logging.getLogger("test.explore")
SPLIT = {"group_by": "patch", "groups_are": "single patches", "slide_disjoint": False}


def write_data(root, *, n=12, n_test=3, slides=True, duplicate=False, **columns):
    """What ingest and split leave; patch i of train is 20 · i but for a corner."""
    train = np.repeat(np.arange(n, dtype=np.uint8) * 20, 96 * 96 * 3).reshape(n, 96, 96, 3)
    train[:, :8, :8] = np.random.default_rng(0).integers(0, 256, (n, 8, 8, 3))
    digests = [f"{i:064x}" for i in range(n + n_test)]
    if duplicate:
        digests[n] = digests[1] = digests[0]
    density = np.random.default_rng(1).uniform(0.1, 0.5, (n + n_test, 9))
    density[0, :3] = 2.4  # the black one
    table = patches_frame(
        [i % 2 for i in range(n)],
        n_test=n_test,
        slides=[f"s{i % 3}" if slides else None for i in range(n)],
        sha256=digests,
        flags=["blank_black", *[""] * (n - 1), "duplicate_of:0", *[""] * (n_test - 1)],
        density=density,
        **columns,
    )
    rewrite(root, table, train)
    return train, table


def rewrite(root, table, train):
    """Both folders anew, for a table that was changed."""
    n_test = int((table["row"][table["subset"] == "test"] >= 0).sum())
    white = np.full((n_test, 96, 96, 3), 255, dtype=np.uint8)
    write_store(root / "ingest", table, train=train, test=white)
    labelled = table[table["subset"] == "train"].sort_values("id")
    splits = [("train", "val", "holdout")[i // 2 % 3] for i in range(len(labelled))]
    folder = write_split_folder(root / "split", labelled["id"].tolist(), splits)
    write_json(folder / "split.json", SPLIT)
    write_manifest(folder)
    write_json(root / "ingest" / "report.json", {"digests": {"train": "0" * 32}})


def surveyed(root):
    """The packed patches, and what one pass finds."""
    packed = open_packed(root / "ingest", root / "split")
    return packed, survey_packed(packed, LOG)


def survey_only(root):
    """The report without drawing a picture, which takes seconds."""
    return report_findings(*surveyed(root))
