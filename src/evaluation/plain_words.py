"""The result in sentences for people: what it says, and what to bear in mind."""

from collections.abc import Callable, Iterator, Mapping
from math import exp
from typing import Any

from src.evaluation.report_files import Sources

Metrics = Mapping[str, Any]

_FEW_GROUPS = 10
_LARGE_SWING = 0.02
_FAR_SLOPE = 0.2
_FAR_INTERCEPT = 0.2  # of the log odds: the odds are off by more than a fifth
_GENERATED_SLIDE = r"(train|test)_slide_\d{3,}"  # as src.data.generated names them


def verdict(metrics: Metrics) -> str:
    """Two sentences: how well it tells the classes apart, and whether that is more than colour."""
    holdout, against = metrics["holdout"], metrics["against_baseline"]
    of_hundred = round(100 * holdout["auroc"])
    interval = (
        f"{percent(metrics['confidence'])} interval {holdout['auroc_low']:.3f} to "
        f"{holdout['auroc_high']:.3f}"
        if "auroc_low" in holdout
        else "too few groups for an interval"
    )
    told = (
        "Shown one tumour and one normal patch of groups it never saw, the model ranks the tumour "
        f"higher about {of_hundred} times in 100 (AUROC {holdout['auroc']:.3f}, {interval}). The "
        "better of two models that see only a histogram of the patch's colours reaches "
        f"{metrics['baseline']['auroc']:.3f}. The model {against['text']}"
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
        f"The least cost, {point['cost_fn']:g} a missed tumour patch and {point['cost_fp']:g} a "
        "false alarm,"
    )


def caveats(sources: Sources) -> list[str]:
    """What weakens the verdict, the gravest first; the last holds always."""
    return [text for check in _CHECKS for text in check(sources)] + [
        "A patch isn't a patient: this is a research tool, not for diagnosis."
    ]


def _split_level(sources: Sources) -> Iterator[str]:
    if not sources.metrics["slide_disjoint"]:
        yield (
            f"The split is not by slide: its groups are {sources.metrics['groups_are']}. "
            "Patches of one slide may stand on both sides, so these figures flatter. A public "
            "ResNet50 had 0.993 on a random split and 0.955 on Kaggle's private slides."
        )


def _few_groups(sources: Sources) -> Iterator[str]:
    n_groups = sources.metrics["holdout"]["n_groups"]
    if n_groups < _FEW_GROUPS:
        yield (
            f"Only {n_groups} groups are in holdout. The intervals allow for so few, but not for "
            "slides of a kind that isn't among them."
        )


def _looked_before(sources: Sources) -> Iterator[str]:
    number = sources.metrics["look"]["number"]
    if number > 1:
        confidence = percent(sources.metrics["against_baseline"].get("confidence", 1))
        yield (
            f"This is model {number:,} judged on this holdout: the best of several looks better "
            f"than it is. The verdict allows for that ({confidence} instead of "
            f"{percent(sources.metrics['confidence'])}); the other intervals don't."
        )


def _operating_point_transfers(sources: Sources) -> Iterator[str]:
    holdout, point = sources.metrics["holdout"], sources.metrics["operating_point"]
    for name in ("sensitivity", "specificity"):
        asked = point.get(f"min_{name}")
        if asked is not None and holdout.get(name, 1.0) < asked:
            yield (
                f"The threshold reached a {name} of {asked:g} on val, as asked, but "
                f"{holdout[name]:.3f} on holdout: it doesn't carry over to other groups as it is."
            )


def _one_group_matters(sources: Sources) -> Iterator[str]:
    left_out = sources.metrics["leave_one_group_out"]
    if left_out and left_out["swing"] > _LARGE_SWING:
        yield f"One group alone ({left_out['group']}) moves the AUROC by {left_out['swing']:.3f}."


def _calibration(sources: Sources) -> Iterator[str]:
    holdout = sources.metrics["holdout"]
    slope, intercept = (holdout.get(f"calibration_{name}") for name in ("slope", "intercept"))
    if slope is not None and abs(slope - 1) > _FAR_SLOPE:
        kind = "too extreme" if slope < 1 else "too timid"
        yield f"On holdout the probabilities are {kind} (calibration slope {slope:.2f})."
    if intercept is not None and abs(intercept) > _FAR_INTERCEPT:
        amount, direction = ("more", "low") if intercept > 0 else ("less", "high")
        yield (
            f"On holdout there is {amount} tumour than the probabilities say: the odds are "
            f"{exp(abs(intercept)):.1f} times too {direction} (calibration intercept "
            f"{intercept:+.2f})."
        )


def _looks_elsewhere(sources: Sources) -> Iterator[str]:
    share = sources.gallery["centre_share"]
    if share["mean"] is not None and share["mean"] < share["area"]:
        yield (
            f"{100 * share['mean']:.0f} % of the evidence lies in the centre that the label speaks "
            f"of, which is {100 * share['area']:.0f} % of what the model sees: it looks at the "
            "surroundings as much or more (Grad-CAM is coarse; take it as a hint)."
        )


def _weights(sources: Sources) -> Iterator[str]:
    if sources.record["params"]["model"]["weights"] == "none":
        yield "The network started from random weights: ImageNet weights reach far more."


def is_generated(sources: Sources) -> bool:
    """Whether the patches are this project's drawings: their slides are named as ``sample`` does.

    The file's name tells nothing: anybody may rename or unpack it.
    """
    slides = sources.holdout["slide"].dropna()
    return not slides.empty and bool(slides.astype(str).str.fullmatch(_GENERATED_SLIDE).all())


def _generated(sources: Sources) -> Iterator[str]:
    if is_generated(sources):
        yield "The patches are generated, not real tissue: the figures say that the pipeline works."


_CHECKS: tuple[Callable[[Sources], Iterator[str]], ...] = (
    _generated,
    _split_level,
    _few_groups,
    _looked_before,
    _operating_point_transfers,
    _one_group_matters,
    _calibration,
    _looks_elsewhere,
    _weights,
)


def percent(confidence: float) -> str:
    """0.975 → ``97.5 %``."""
    return f"{100 * confidence:.4g} %"
