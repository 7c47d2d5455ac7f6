"""The links from a submission's data digests to the packed pixels and the archive, each checked."""

import hashlib
from collections.abc import Mapping, Sequence
from logging import Logger
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from src import paths
from src.data.patches import content_digest
from src.system.durable import MANIFEST, read_json, sha256_file
from src.system.errors import ProjectError
from src.system.links import (
    Link,
    changed,
    holds,
    is_listed,
    manifest_entries,
    missing,
    same,
)
from src.system.progress import progress

if TYPE_CHECKING:
    import pandas as pd

_AGAIN = "run: dvc repro ingest"


def ingest_links(digests: Mapping[str, str], log: Logger) -> list[Link]:
    """Files of ``data/ingest``, and the digests made anew from table and pixels.

    ``digests`` are those the submission names, by subset.
    """
    folder, manifest = "data/ingest", paths.INGEST / MANIFEST
    entries = manifest_entries(manifest)
    if entries is None:
        links = [changed(f"{folder}/{MANIFEST}", f"is gone or was changed; {_AGAIN}")]
    else:
        links = [
            changed(f"{folder}/{name}", f"is gone, or not as {folder}/{MANIFEST} says")
            for name, entry in entries.items()
            if not is_listed(paths.INGEST / name, entry)
        ] or [holds(folder, f"{len(entries)} files are those ingest wrote")]
    return [*links, *_content_links(digests, log)]


def _content_links(digests: Mapping[str, str], log: Logger) -> list[Link]:
    import pandas as pd

    try:
        table = pd.read_parquet(paths.PATCHES)
    except (OSError, ValueError):  # ArrowInvalid is a ValueError
        return [missing("patches.parquet", f"can't be read; {_AGAIN}")]
    links = []
    for subset, digest in digests.items():
        rows = table[table["subset"] == subset]
        links.append(
            same(f"digest of {subset}", content_digest(rows), digest, source="lineage.json")
        )
        links.append(_pixels_link(subset, rows, log))
    return links


def _pixels_link(subset: str, rows: "pd.DataFrame", log: Logger) -> Link:
    """Whether each patch's pixels have the SHA-256 that the table gives."""
    file, readable = paths.INGEST / f"{subset}.npy", rows[rows["row"] >= 0]
    try:
        pixels = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError):
        return missing(file.name, f"can't be read; {_AGAIN}")
    n_wrong, first = 0, ""
    with progress(f"{subset}: hashing", len(readable), "patches", log) as advance:
        for patch_id, row, sha256 in zip(
            readable["id"], readable["row"], readable["sha256"], strict=True
        ):
            if row >= len(pixels) or hashlib.sha256(pixels[row]).hexdigest() != sha256:
                first = first or str(patch_id)
                n_wrong += 1
            advance(1)
    if n_wrong:
        said = f"{n_wrong:,} patches have other pixels than patches.parquet says, first: {first}"
        return changed(file.name, said)
    return holds(file.name, f"{len(readable):,} patches have the pixels patches.parquet names")


def training_links(lineage: Mapping[str, Any], evidence: Mapping[str, Any]) -> list[Link]:
    """Whether the version was trained on the data and split that lie here."""
    trained_on, here = evidence.get("data", {}).get("train"), lineage["data"].get("train")
    if trained_on != here:
        return [
            missing(
                "training data",
                f"the version was trained on digest {trained_on}, data/ingest holds {here}: check "
                "out that version's dvc.lock and run: dvc checkout",
            )
        ]
    links = [holds("training data", "the version was trained on the digest above")]
    if not paths.SPLIT.is_file():
        return [*links, missing("split.parquet", "is gone; run: dvc repro split")]
    found, expected = sha256_file(paths.SPLIT), evidence.get("split_sha256")
    split = same("split.parquet", found, expected, source="the version's evidence")
    return [*links, split, *_run_data_links(evidence)]


def _run_data_links(evidence: Mapping[str, Any]) -> list[Link]:
    """Data and split by each run's own record, beside those the version was evaluated on.

    Evaluated on another split, it would be judged on patches it was trained on.
    """
    runs = evidence.get("runs", {})
    links = [missing("runs", "the version says of none what it was trained on")] if not runs else []
    expected = {
        "data": ("content_digest", evidence.get("data", {}).get("train")),
        "split": ("split_sha256", evidence.get("split_sha256")),
    }
    for folder, run in runs.items():
        recorded = run["record"]["dataset"]
        links += [
            same(f"{what} of the run of {folder}", recorded.get(key), digest, source="evaluate")
            for what, (key, digest) in expected.items()
        ]
    return links


def archive_links(archives: Sequence[Path], evidence: Mapping[str, Any]) -> list[Link]:
    """The archives of ``params.yaml`` beside what ``report.json`` and the version say of them."""
    try:
        report = read_json(paths.INGEST_REPORT)["archive"]
    except (ProjectError, KeyError) as error:
        return [missing("data/ingest/report.json", f"doesn't name the archive: {error}")]
    recorded = [report, *report.get("extra", [])]
    links = [_archive_link(path, entry) for path, entry in zip(archives, recorded, strict=False)]
    if len(archives) != len(recorded):
        said = f"params.yaml names {len(archives)} archives, report.json {len(recorded)}"
        links.append(changed("archives", said))
    said_then = evidence.get("archive", {}).get("sha256")
    return [
        *links,
        same("archive trained on", report.get("sha256"), said_then, source="the version"),
    ]


def _archive_link(path: Path, recorded: Mapping[str, Any]) -> Link:
    what = str(recorded.get("name"))
    if recorded.get("sha256") is None:
        return missing(what, f"a {recorded.get('kind')} has no digest of its own; use the zip")
    if path.name != what or not path.is_file():
        return missing(what, f"is not where ingest.archive points ({path.name})")
    return same(what, sha256_file(path), recorded["sha256"], source="report.json")
