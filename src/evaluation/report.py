"""``reports/index.html`` and ``reports/model_card.md``: the same facts, as a page and as text.

The page is one file without network: its style, script, figures and pictures are inside.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from src.evaluation import report_facts
from src.evaluation.curves import RATES, Band, curve_bands
from src.evaluation.figures import holdout_figures, inline_svg, learning_curves
from src.evaluation.gallery import SETS
from src.evaluation.metrics import METRICS
from src.evaluation.metrics_report import MIN_PATCHES
from src.evaluation.report_facts import Sources

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
_PHASE_TITLES = {"train": "Head alone", "finetune": "Top blocks as well"}


def render_report(sources: Sources) -> str:
    """The page."""
    holdout, metrics = sources.holdout, sources.metrics
    bands = curve_bands(
        holdout["label"],
        holdout["probability"],
        holdout["group"],
        confidence=metrics["confidence"],
    )
    figures = holdout_figures(holdout, metrics, bands)
    figures |= {f"learning_{fit['stage']}": learning_curves(fit) for fit in sources.fits}
    label = holdout["label"].astype(bool)
    called = holdout["probability"] >= metrics["operating_point"]["threshold"]
    page_facts = {
        "style": Markup(_read("style.css")),
        "script": Markup(_read("report.js")),
        "sections": _SECTIONS.items(),
        "rates": [(name, METRICS[name].title, text) for name, text in _MEANINGS.items()],
        "at": {
            "tp": int((label & called).sum()),
            "fn": int((label & ~called).sum()),
            "fp": int((~label & called).sum()),
            "tn": int((~label & ~called).sum()),
        },
        "charts": {
            name: Markup(inline_svg(figure, name))
            for name, figure in figures.items()
            if name != "confusion"  # the page has it as a table
        },
        "gallery": _gallery(sources),
        "pictures": sources.explored,
        "payload": slider_payload(sources, bands),
    }
    return _render("index.html.j2", _facts(sources) | page_facts)


def render_model_card(sources: Sources) -> str:
    """The card, in Markdown (Mitchell et al. 2019, "Model Cards for Model Reporting")."""
    return _render("model_card.md.j2", _facts(sources))


def slider_payload(sources: Sources, bands: Mapping[str, Band]) -> dict[str, Any]:
    """What the slider computes from: every holdout patch, by rising probability, in full precision.

    ``grid`` has the bounds of each rate at 0, 0.01 … 1; ``chosen`` those at the chosen threshold.
    """
    holdout, known = sources.holdout, sources.metrics["holdout"]
    ids = holdout["id"].tolist()
    chosen = {
        name: [known[f"{name}_low"], known[f"{name}_high"]]
        for name in RATES
        if f"{name}_low" in known
    }
    return {
        "probabilities": holdout["probability"].tolist(),
        "labels": holdout["label"].astype(int).tolist(),
        "ids": [id_[:_ID_DIGITS] for id_ in ids],
        "thumbnails": {
            place: sources.thumbnails[id_]
            for place, id_ in enumerate(ids)
            if id_ in sources.thumbnails
        },
        "chosen": {"threshold": sources.metrics["operating_point"]["threshold"], **chosen},
        "grid": {
            name: [
                [round(low, 4), round(high, 4)] if np.isfinite(low + high) else [None, None]
                for low, high in zip(
                    bands[name].low.tolist(), bands[name].high.tolist(), strict=True
                )
            ]
            for name in RATES
        },
    }


def _facts(sources: Sources) -> dict[str, Any]:
    """What page and card share."""
    metrics, params = sources.metrics, sources.record["params"]
    backbone = str(params["model"]["backbone"])
    return {
        "m": metrics,
        "confidence": report_facts.percent(metrics["confidence"]),
        "verdict": report_facts.verdict(metrics),
        "rule": report_facts.rule(metrics),
        "floor": report_facts.floor(metrics),
        "caveats": report_facts.caveats(sources),
        "metrics": list(METRICS.values()),
        "undefined": sorted(metrics["undefined"].items()),
        "min_patches": MIN_PATCHES,
        "groups": _group_rows(sources),
        "archive": sources.ingest["archive"]["name"],
        "split": sources.split,
        "uses": _USES,
        "phases": [_phase(fit) for fit in sources.fits],
        "model": params["model"],
        "backbone": {"resnet50": "ResNet50"}.get(backbone, backbone),
        "is_generated": report_facts.is_generated(sources),
        "explained": sources.gallery,
        "provenance": _provenance(sources),
        "commit": sources.record["origin"]["git_commit"],
        "params": json.dumps(params, indent=2, sort_keys=True),
    }


def _group_rows(sources: Sources) -> list[dict[str, Any]]:
    """``groups.csv``; a stain's name, ``A #d0a0c0``, as name and colour."""
    rows = []
    for row in sources.groups.to_dict("records"):
        name, colour = str(row["name"]), ""
        if row["kind"] == "stain" and " #" in name:
            name, colour = name.split(" #")
        over = row["interval_over"] if isinstance(row["interval_over"], str) else ""
        changed = {"name": name, "colour": colour and f"#{colour}", "interval_over": over}
        rows.append({str(key): value for key, value in row.items()} | changed)
    return rows


def _gallery(sources: Sources) -> list[dict[str, Any]]:
    patches = [
        {**patch, "picture": sources.pictures[patch["id"]]} for patch in sources.gallery["patches"]
    ]
    sets = {title: [p for p in patches if p["set"] == name] for name, title in SETS.items()}
    return [{"title": title, "patches": found} for title, found in sets.items() if found]


def _phase(fit: Mapping[str, Any]) -> dict[str, Any]:
    best, n_epochs = fit["history"][fit["best_epoch"] - 1], len(fit["history"])
    ended = "stopped early" if fit["stopped_early"] else "ran to its end"
    schedule = dict(fit["schedule"])
    name = schedule.pop("name", "schedule")
    settings = ", ".join(f"{key} {value:g}" for key, value in schedule.items())
    return {
        "title": _PHASE_TITLES.get(fit["stage"], fit["stage"]),
        "summary": (
            f"{fit['trainable_parameters']:,} of {fit['total_parameters']:,} parameters trained; "
            f"{n_epochs} epoch{'s' * (n_epochs > 1)} in {fit['wall_s']:,.0f} s, {ended}. "
            f"Kept: epoch {fit['best_epoch']}, val AUROC {best['val_auroc']:.4f}, val loss "
            f"{best['val_loss']:.4f}."
        ),
        "figure": f"learning_{fit['stage']}",
        "schedule": f"{name} ({settings})" if settings else name,
        "class_weights": fit["class_weights"],
    }


def _provenance(sources: Sources) -> list[tuple[str, str]]:
    record, fit = sources.record, sources.fits[1]
    origin, dataset = record["origin"], record["dataset"]
    changed = " (with changes that were not committed)" if origin["git_dirty"] == "true" else ""
    versions = [
        f"{name} {fit['environment'][name]}"
        for name in ("python", "tensorflow", "keras", "numpy")
        if name in fit["environment"]
    ]
    return [
        ("code, git commit", f"{origin['git_commit']}{changed}"),
        ("MLflow run of the fine-tuning", sources.run_id),
        ("archive", str(sources.ingest["archive"]["name"])),
        ("packed data, DVC md5 or content digest", str(dataset["digest"])),
        ("patches, digest of the content", str(dataset["content_digest"])),
        *((f"{name}, SHA-256", digest) for name, digest in sources.digests.items()),
        ("initial weights, SHA-256", str(fit["initial_weights_sha256"])),
        ("final weights, SHA-256", str(fit["final_weights_sha256"])),
        ("software", ", ".join(versions)),
    ]


def _render(name: str, facts: Mapping[str, Any]) -> str:
    environment = Environment(
        loader=FileSystemLoader(_PAGE),
        autoescape=name.endswith(".html.j2"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "number": lambda v, digits: f"{v:.{digits}f}".replace("-", "−") if np.isfinite(v) else "–",
        "signed": lambda v, digits: f"{v:+.{digits}f}".replace("-", "−"),
        "thousands": lambda v: f"{v:,.0f}",
    }
    return environment.get_template(name).render(facts)


def _read(name: str) -> str:
    return (_PAGE / name).read_text(encoding="utf-8")
