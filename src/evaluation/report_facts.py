"""What the report says: the files that the stages wrote, and the result in sentences for people."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from math import exp
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from src import paths
from src.system.durable import read_json, sha256_file, verify_folder

Metrics = Mapping[str, Any]

_PICTURE_WIDTH_PX = 860
_FEW_GROUPS = 10
_LARGE_SWING = 0.02
_FAR_SLOPE = 0.2
_FAR_INTERCEPT = 0.2  # of the log odds: the odds are off by more than a fifth
_GENERATED_SLIDE = r"(train|test)_slide_\d{3,}"  # as `sample` names them


@dataclass(frozen=True)
class Sources:
    """The content of the files, as they are.

    Attributes
    ----------
    metrics : ``metrics.json``
    holdout : the holdout rows of ``predictions.parquet``, by rising probability
    groups : ``plots/groups.csv``
    gallery : ``gallery.json``
    pictures, thumbnails : patch id → picture as a data URI
    fits : ``fit.json`` of train and finetune, with ``wall_s`` of ``timing.json``
    record : what the run of finetune says of itself (``run.json``)
    run_id : of that run, when it was made
    split, ingest : ``split.json``, ``report.json``
    explored : name → picture of ``explore`` as (data URI, width, height)
    digests : name → SHA-256 of files behind the report
    """

    metrics: Mapping[str, Any]
    holdout: pd.DataFrame
    groups: pd.DataFrame
    gallery: Mapping[str, Any]
    pictures: Mapping[str, str]
    thumbnails: Mapping[str, str]
    fits: tuple[Mapping[str, Any], Mapping[str, Any]]
    record: Mapping[str, Any]
    run_id: str
    split: Mapping[str, Any]
    ingest: Mapping[str, Any]
    explored: Mapping[str, tuple[str, int, int]]
    digests: Mapping[str, str]


def read_sources() -> Sources:
    """Read and verify all of it.

    Raises
    ------
    ProjectError
        A file is missing, or isn't the one its manifest names.
    """
    for folder in (paths.EVALUATE, paths.PLOTS, paths.GALLERY, paths.EXPLORE):
        verify_folder(folder)
    predictions = pd.read_parquet(paths.PREDICTIONS)
    holdout = predictions[predictions["split"] == "holdout"]
    explored = read_json(paths.EXPLORE / "explore.json")["pictures"]
    run = read_json(paths.FINETUNED_MODEL / "run.json")
    head, finetuned = (
        read_json(folder / "fit.json") | {"wall_s": read_json(folder / "timing.json")["wall_s"]}
        for folder in (paths.HEAD_MODEL, paths.FINETUNED_MODEL)
    )
    digested = (paths.SPLIT, paths.PREDICTIONS, paths.METRICS)
    return Sources(
        metrics=read_json(paths.METRICS),
        holdout=holdout.sort_values(["probability", "id"]).reset_index(drop=True),
        groups=pd.read_csv(paths.PLOTS / "groups.csv"),
        gallery=read_json(paths.GALLERY / "gallery.json"),
        pictures=_data_uris(paths.GALLERY / "pictures"),
        thumbnails=_data_uris(paths.GALLERY / "thumbnails"),
        fits=(head, finetuned),
        record=run["record"],
        run_id=str(run["run_id"]),
        split=read_json(paths.SPLIT_REPORT),
        ingest=read_json(paths.INGEST_REPORT),
        explored={name: _downsized(paths.EXPLORE / name) for name in explored},
        digests={file.name: sha256_file(file) for file in digested},
    )


def _data_uris(folder: Path) -> dict[str, str]:
    return {file.stem: _data_uri(file.read_bytes()) for file in sorted(folder.glob("*.webp"))}


def _data_uri(webp: bytes) -> str:
    return f"data:image/webp;base64,{base64.b64encode(webp).decode()}"


def _downsized(file: Path) -> tuple[str, int, int]:
    with Image.open(file, formats=["PNG"]) as picture:
        width = min(picture.width, _PICTURE_WIDTH_PX)
        height = round(picture.height * width / picture.width)
        small = picture.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)
    buffer = BytesIO()
    small.save(buffer, "WEBP", quality=72)
    return _data_uri(buffer.getvalue()), width, height


def verdict(metrics: Metrics) -> str:
    """Two sentences: how well it tells the classes apart, and whether that is more than colour."""
    holdout, against = metrics["holdout"], metrics["against_baseline"]
    interval = "too few groups for an interval"
    if "auroc_low" in holdout:
        low, high = holdout["auroc_low"], holdout["auroc_high"]
        interval = f"{percent(metrics['confidence'])} interval {low:.3f} to {high:.3f}"
    told = (
        "Shown one tumour and one normal patch of groups it never saw, the model ranks the tumour "
        f"higher about {100 * holdout['auroc']:.0f} times in 100 (AUROC {holdout['auroc']:.3f}, "
        f"{interval}). The better of two models that see only a histogram of the patch's colours "
        f"reaches {metrics['baseline']['auroc']:.3f}. The model {against['text']}"
    )
    if against["beats"] or "high" not in against:
        return f"{told}."
    if against["high"] < 0:
        return f"{told}: don't use it."
    return f"{told}: colour alone may explain its result."


def floor(metrics: Metrics) -> str:
    """What the colour baseline is, and how it was chosen."""
    baseline = metrics["baseline"]
    aurocs = " and ".join(f"{value:.3f} ({name})" for name, value in baseline["val_auroc"].items())
    return (
        f"the stronger of {' and '.join(baseline['val_auroc'])} on colour histograms, chosen on "
        f"val: {baseline['model']}, AUROC {aurocs}"
    )


def rule(metrics: Metrics) -> str:
    """The rule of the operating point."""
    point = metrics["operating_point"]
    if "min_sensitivity" in point:
        return f"The highest threshold with a sensitivity of at least {point['min_sensitivity']:g}"
    if "min_specificity" in point:
        return f"The lowest threshold with a specificity of at least {point['min_specificity']:g}"
    return (
        f"The least cost, {point['cost_fn']:g} per missed tumour patch and {point['cost_fp']:g} "
        "per false alarm,"
    )


def caveats(sources: Sources) -> list[str]:
    """What weakens the verdict, the gravest first; the last applies to every model."""
    metrics, holdout = sources.metrics, sources.metrics["holdout"]
    found = []
    if is_generated(sources):
        found.append(
            "The patches are generated, not real tissue: the figures say that the pipeline works."
        )
    if not metrics["slide_disjoint"]:
        found.append(
            f"The split is not by slide: its groups are {metrics['groups_are']}. Patches of one "
            "slide may be on both sides, so these figures flatter. A public ResNet50 had 0.993 on "
            "a random split and 0.955 on Kaggle's private slides."
        )
    if holdout["n_groups"] < _FEW_GROUPS:
        found.append(
            f"Only {holdout['n_groups']} groups are in holdout. The intervals allow for so few, "
            "but not for slides of a kind that isn't among them."
        )
    if metrics["look"]["number"] > 1:
        found.append(
            f"This is model {metrics['look']['number']:,} judged on this archive: the best of "
            "several looks better than it is. The verdict allows for that "
            f"({percent(metrics['against_baseline'].get('confidence', 1))} instead of "
            f"{percent(metrics['confidence'])}); the other intervals don't."
        )
    for name in ("sensitivity", "specificity"):
        asked = metrics["operating_point"].get(f"min_{name}")
        if asked is not None and holdout.get(name, 1.0) < asked:
            found.append(
                f"The threshold reached a {name} of {asked:g} on val, as asked, but "
                f"{holdout[name]:.3f} on holdout: it doesn't carry over to other groups as it is."
            )
    left_out = metrics["leave_one_group_out"]
    if left_out and left_out["swing"] > _LARGE_SWING:
        found.append(
            f"One group alone ({left_out['group']}) moves the AUROC by {left_out['swing']:.3f}."
        )
    found += _on_calibration(holdout)
    share = sources.gallery["centre_share"]
    if share["mean"] is not None and share["mean"] < share["area"]:
        found.append(
            f"{100 * share['mean']:.0f} % of the evidence is in the centre that the label is "
            f"about, which is {100 * share['area']:.0f} % of what the model sees: it looks at the "
            "surroundings as much or more (Grad-CAM is coarse; take it as a hint)."
        )
    if sources.record["params"]["model"]["weights"] == "none":
        found.append(
            "The network started from random weights: with ImageNet weights it does far better."
        )
    found.append("A patch isn't a patient: this is a research tool, not for diagnosis.")
    return found


def _on_calibration(holdout: Metrics) -> list[str]:
    slope = holdout.get("calibration_slope", 1.0)
    intercept = holdout.get("calibration_intercept", 0.0)
    found = []
    if abs(slope - 1) > _FAR_SLOPE:
        kind = "too extreme" if slope < 1 else "too timid"
        found.append(f"On holdout the probabilities are {kind} (calibration slope {slope:.2f}).")
    if abs(intercept) > _FAR_INTERCEPT:
        amount, direction = ("more", "low") if intercept > 0 else ("less", "high")
        found.append(
            f"On holdout there is {amount} tumour than the probabilities say: the odds are "
            f"{exp(abs(intercept)):.1f} times too {direction} (calibration intercept "
            f"{intercept:+.2f})."
        )
    return found


def is_generated(sources: Sources) -> bool:
    """Whether the patches are this project's drawings: their slides are named as ``sample`` does.

    The file's name tells nothing: anybody may rename or unpack it.
    """
    slides = sources.holdout["slide"].dropna()
    return not slides.empty and bool(slides.astype(str).str.fullmatch(_GENERATED_SLIDE).all())


def percent(confidence: float) -> str:
    """0.975 → ``97.5 %``."""
    return f"{100 * confidence:.4g} %"
