"""``reports/index.html`` and ``reports/model_card.md``: the same facts, as a page and as text.

The page is one file without network: its style, script, charts and pictures are inside.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from src.evaluation import plain_words, svg
from src.evaluation.bands import RATES, Band, curve_bands
from src.evaluation.gallery import SETS
from src.evaluation.groups import MIN_PATCHES
from src.evaluation.metrics import METRICS
from src.evaluation.report_charts import charts, training_charts
from src.evaluation.report_files import Sources

_PAGE = Path(__file__).parent / "page"
_ID_DIGITS = 10

_SECTIONS = {
    "verdict": "Verdict",
    "threshold": "Operating point",
    "results": "Results",
    "curves": "Curves",
    "groups": "Slides and stains",
    "gallery": "Patches",
    "training": "Training",
    "data": "Data",
    "reproduce": "Reproduce",
}
_MEANINGS = {
    "sensitivity": "of tumour patches, called tumour",
    "specificity": "of normal patches, called normal",
    "ppv": "of those called tumour, tumour",
    "npv": "of those called normal, normal",
    "f1": "harmonic mean of sensitivity and PPV",
}
_USES = {
    "train": "fitting the model and the baselines",
    "val": "early stopping, calibration, threshold, choice of the baseline",
    "holdout": "these figures",
}
_BACKBONE_TITLES = {"resnet50": "ResNet50"}
_PICTURE_TITLES = {
    "labels.png": "Patches by label",
    "samples_normal.png": "Random normal patches",
    "samples_tumour.png": "Random tumour patches",
    "channel_histograms.png": "Colour channels by label",
    "mean_patches.png": "Mean patch by label",
    "stain.png": "Stain: haematoxylin and eosin",
    "blank.png": "The whitest and the blackest patches",
    "blurred.png": "The least sharp patches",
    "splits.png": "Train, val and holdout compared",
    "slides.png": "Patches by slide",
    "duplicates.png": "Identical patches",
    "near_duplicates.png": "Nearly identical patches",
}


def render_report(sources: Sources) -> str:
    """The page."""
    bands = curve_bands(
        sources.holdout["label"],
        sources.holdout["probability"],
        sources.holdout["group"],
        confidence=sources.metrics["confidence"],
    )
    return _render("index.html.j2", _facts(sources) | _page_facts(sources, bands))


def render_model_card(sources: Sources) -> str:
    """The card, in Markdown (Mitchell et al. 2019, "Model Cards for Model Reporting")."""
    return _render("model_card.md.j2", _facts(sources))


def slider_payload(sources: Sources, bands: Mapping[str, Band]) -> dict[str, Any]:
    """What the slider computes from: every holdout patch, by rising probability, in full precision.

    ``grid`` holds bounds of each rate at 0, 0.01 … 1; ``chosen`` those at the chosen threshold.
    """
    holdout, metrics = sources.holdout, sources.metrics
    ids = holdout["id"].tolist()
    known = metrics["holdout"]
    chosen = {"threshold": metrics["operating_point"]["threshold"]}
    return {
        "probabilities": holdout["probability"].tolist(),
        "labels": holdout["label"].astype(int).tolist(),
        "ids": [id_[:_ID_DIGITS] for id_ in ids],
        "thumbnails": {
            place: sources.thumbnails[id_]
            for place, id_ in enumerate(ids)
            if id_ in sources.thumbnails
        },
        "chosen": chosen
        | {
            name: [known[f"{name}_low"], known[f"{name}_high"]]
            for name in _MEANINGS
            if f"{name}_low" in known
        },
        "grid": {name: _rounded(bands[name]) for name in RATES},
        "box": {
            "left": svg.LEFT,
            "right": svg.WIDTH - svg.RIGHT,
            "top": svg.TOP,
            "bottom": svg.HEIGHT - svg.BOTTOM,
        },
    }


def _facts(sources: Sources) -> dict[str, Any]:
    """What page and card share."""
    metrics, backbone = sources.metrics, str(sources.record["params"]["model"]["backbone"])
    return {
        "m": metrics,
        "confidence": plain_words.percent(metrics["confidence"]),
        "verdict": plain_words.verdict(metrics),
        "rule": plain_words.rule(metrics),
        "floor": plain_words.floor(metrics),
        "caveats": plain_words.caveats(sources),
        "metrics": list(METRICS.values()),
        "undefined": sorted(metrics["undefined"].items()),
        "min_patches": MIN_PATCHES,
        "groups": _group_rows(sources),
        "data": _data(sources),
        "phases": [_phase(fit) for fit in sources.fits],
        "model": sources.record["params"]["model"],
        "backbone": _BACKBONE_TITLES.get(backbone, backbone),
        "is_generated": plain_words.is_generated(sources),
        "centre_share": sources.gallery["centre_share"],
        "cells": sources.gallery["cells"],
        "provenance": _provenance(sources),
        "commands": _commands(sources),
        "params": json.dumps(sources.record["params"], indent=2, sort_keys=True),
    }


def _page_facts(sources: Sources, bands: Mapping[str, Band]) -> dict[str, Any]:
    from markupsafe import Markup

    phases = [
        _phase(fit) | {name: Markup(chart) for name, chart in training_charts(fit).items()}
        for fit in sources.fits
    ]
    return {
        "style": Markup(_read("style.css")),
        "script": Markup(_read("report.js")),
        "sections": _SECTIONS.items(),
        "rates": [(name, METRICS[name].title, text) for name, text in _MEANINGS.items()],
        "at": _confusion(sources),
        "charts": {name: Markup(chart) for name, chart in charts(sources, bands).items()},
        "phases": phases,
        "gallery": _gallery(sources),
        "gallery_note": _gallery_note(sources),
        "payload": slider_payload(sources, bands),
    }


def _confusion(sources: Sources) -> dict[str, int]:
    label = sources.holdout["label"].astype(bool)
    called = sources.holdout["probability"] >= sources.metrics["operating_point"]["threshold"]
    return {
        "tp": int((label & called).sum()),
        "fn": int((label & ~called).sum()),
        "fp": int((~label & called).sum()),
        "tn": int((~label & ~called).sum()),
    }


def _group_rows(sources: Sources) -> list[dict[str, Any]]:
    rows = []
    for row in sources.groups.to_dict("records"):
        name, _, colour = str(row["name"]).partition(" #")
        is_stain = row["kind"] == "stain"
        row["colour"] = f"#{colour}" if is_stain and colour else ""
        row["name"] = name if is_stain else row["name"]
        row["interval_over"] = row["interval_over"] if isinstance(row["interval_over"], str) else ""
        rows.append({str(key): value for key, value in row.items()})
    return rows


def _gallery(sources: Sources) -> list[dict[str, Any]]:
    sets = []
    for name, title in SETS.items():
        patches = [
            {**patch, "picture": sources.pictures[patch["id"]]}
            for patch in sources.gallery["patches"]
            if patch["set"] == name
        ]
        if patches:
            sets.append({"title": title, "patches": patches})
    return sets


def _gallery_note(sources: Sources) -> str:
    share, cells = sources.gallery["centre_share"], sources.gallery["cells"]
    seen_px = sources.gallery["seen_px"]
    told = (
        f"The map has {cells[0]} × {cells[1]} cells over the {seen_px} × {seen_px} px the model "
        "sees, and each has seen more than its own square: it says roughly where, no more."
    )
    if share["mean"] is None:
        return told
    return (
        f"{told} Over {share['n']} random holdout patches {100 * share['mean']:.0f} % of the "
        f"evidence lay in the centre, which is {100 * share['area']:.0f} % of the area seen."
    )


def _phase(fit: Mapping[str, Any]) -> dict[str, Any]:
    best = fit["history"][fit["best_epoch"] - 1]
    ended = "stopped early" if fit["stopped_early"] else "ran to its end"
    schedule = dict(fit["schedule"])
    name = schedule.pop("name", "schedule")
    settings = ", ".join(f"{key} {value:g}" for key, value in schedule.items())
    return {
        "title": {"train": "Head alone", "finetune": "Top blocks as well"}.get(
            fit["stage"], fit["stage"]
        ),
        "summary": (
            f"{fit['trainable_parameters']:,} of {fit['total_parameters']:,} parameters trained; "
            f"{len(fit['history'])} epochs in {fit['wall_s']:,.0f} s, {ended}. Kept: epoch "
            f"{fit['best_epoch']}, val AUROC {best['val_auroc']:.4f}, val loss "
            f"{best['val_loss']:.4f}."
        ),
        "schedule": f"{name} ({settings})" if settings else name,
        "class_weights": fit["class_weights"],
    }


def _data(sources: Sources) -> dict[str, Any]:
    return {
        "archive": sources.ingest["archive"]["name"],
        "n": sources.split["n_patches"],
        "n_slides": sources.split["n_slides"],
        "splits": [
            {"name": name, "use": use, **sources.split["splits"][name]}
            for name, use in _USES.items()
        ],
        "warnings": sources.split.get("warnings", []),
        "pictures": [
            {
                "title": _PICTURE_TITLES.get(name, name.removesuffix(".png")),
                "data": data,
                "width": width,
                "height": height,
            }
            for name, (data, width, height) in sorted(
                sources.explored.items(), key=lambda picture: _place(picture[0])
            )
        ],
    }


def _place(name: str) -> int:
    names = list(_PICTURE_TITLES)
    return names.index(name) if name in names else len(names)


def _provenance(sources: Sources) -> list[tuple[str, str]]:
    record, fit = sources.record, sources.fits[1]
    origin, dataset = record["origin"], record["dataset"]
    changed = " (with changes that were not committed)" if origin["git_dirty"] == "true" else ""
    return [
        ("code, git commit", f"{origin['git_commit']}{changed}"),
        ("MLflow run of the fine-tuning", sources.run_id),
        ("archive", f"{sources.ingest['archive']['name']}"),
        ("packed data, DVC md5 or content digest", str(dataset["digest"])),
        ("patches, digest of the content", str(dataset["content_digest"])),
        *((f"{name}, SHA-256", digest) for name, digest in sources.digests.items()),
        ("initial weights, SHA-256", str(fit["initial_weights_sha256"])),
        ("final weights, SHA-256", str(fit["final_weights_sha256"])),
        (
            "software",
            ", ".join(
                f"{name} {fit['environment'][name]}"
                for name in ("python", "tensorflow", "keras", "numpy")
                if name in fit["environment"]
            ),
        ),
    ]


def _commands(sources: Sources) -> str:
    commit = sources.record["origin"]["git_commit"]
    return "\n".join(
        (
            f"git checkout {commit}",
            "make venv                       # the locked environment",
            f"# archive: {sources.ingest['archive']['name']}; parameters: below, or dvc.lock",
            "dvc repro evaluate",
            "mlflow ui                       # the run and its history",
        )
    )


def _rounded(band: Band) -> list[list[float | None]]:
    return [
        [round(float(low), 4), round(float(high), 4)]
        if np.isfinite((low, high)).all()
        else [None, None]
        for low, high in zip(band.low, band.high, strict=True)
    ]


def _render(name: str, facts: Mapping[str, Any]) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_PAGE),
        autoescape=name.endswith(".html.j2"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"number": _number, "signed": _signed, "thousands": _thousands}
    return environment.get_template(name).render(facts)


def _read(name: str) -> str:
    return (_PAGE / name).read_text(encoding="utf-8")


def _number(value: float, digits: int) -> str:
    return f"{value:.{digits}f}".replace("-", "−") if np.isfinite(value) else "–"


def _signed(value: float, digits: int) -> str:
    return f"{value:+.{digits}f}".replace("-", "−")


def _thousands(value: float) -> str:
    return f"{value:,.0f}"
