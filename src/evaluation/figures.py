"""Pictures whose titles say what to conclude. They draw; numbers come from ``metrics``."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from src.evaluation.calibration import ReliabilityCurve, reliability_curve
from src.evaluation.curves import Floats, precision_recall_curve, roc_curve
from src.evaluation.intervals import Interval
from src.evaluation.metrics import Scored, ece, sensitivity, specificity

# Okabe and Ito's palette, told apart by colour-blind readers
_MODEL, _MARK, _GREY = "#0072B2", "#D55E00", "#777777"
_TRAIN, _VAL = "#0072B2", "#D55E00"
_DPI = 110


def roc(patches: Scored, baseline: Scored, *, auroc: Interval, baseline_auroc: float) -> Figure:
    """ROC of the model and of the colour baseline, with the operating point marked."""
    figure, axes = _square()
    axes.plot([0, 1], [0, 1], color=_GREY, linewidth=1, linestyle=":", label="chance, 0.5")
    axes.plot(
        *roc_curve(baseline.labels, baseline.scores),
        color=_GREY,
        linewidth=1.5,
        label=f"colour baseline, {baseline_auroc:.3f}",
    )
    axes.plot(
        *roc_curve(patches.labels, patches.scores),
        color=_MODEL,
        linewidth=2,
        label=f"model, {auroc.value:.3f}",
    )
    _mark_operating_point(axes, 1 - _specificity(patches), _sensitivity(patches))
    axes.set(xlabel="1 − specificity", ylabel="sensitivity")
    axes.set_title(
        f"AUROC {_with_bounds(auroc)} on holdout,\n"
        f"{auroc.value - baseline_auroc:+.3f} against the colour baseline",
        fontsize=11,
    )
    axes.legend(loc="lower right")
    return figure


def precision_recall(patches: Scored, *, average_precision: Interval) -> Figure:
    """Precision against recall, with the operating point marked."""
    figure, axes = _square()
    prevalence = float(patches.labels.mean())
    axes.axhline(
        prevalence, color=_GREY, linewidth=1, linestyle=":", label=f"chance, {prevalence:.2f}"
    )
    recall, precision = precision_recall_curve(patches.labels, patches.scores)
    axes.step(recall, precision, where="pre", color=_MODEL, linewidth=2, label="model")
    if patches.called_tumour.any():
        called_right = float(patches.labels[patches.called_tumour].mean())
        _mark_operating_point(axes, _sensitivity(patches), called_right)
    axes.set(xlabel="recall (sensitivity)", ylabel="precision (PPV)")
    axes.set_title(f"Average precision {_with_bounds(average_precision)} on holdout")
    axes.legend(loc="lower left")
    return figure


def confusion(patches: Scored) -> Figure:
    """Patches by class and decision at the operating point."""
    counts = _confusion_counts(patches)
    shares = counts / counts.sum(axis=1, keepdims=True)
    figure, axes = _square()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (actual, called), share in np.ndenumerate(shares):
        axes.text(
            called,
            actual,
            f"{counts[actual, called]:,}\n{share:.1%}",
            ha="center",
            va="center",
            fontsize=13,
            color="white" if share > 0.65 else "black",
        )
    axes.set(xlabel="called", ylabel="actual", xlim=(-0.5, 1.5), ylim=(1.5, -0.5))
    axes.set_xticks([0, 1], ["normal", "tumour"])
    axes.set_yticks([0, 1], ["normal", "tumour"])
    axes.set_title(
        f"A threshold of {patches.threshold:.3g} finds {_sensitivity(patches):.1%} of tumour\n"
        f"and clears {_specificity(patches):.1%} of normal holdout patches",
        fontsize=11,
    )
    return figure


def reliability(
    labels: NDArray[np.integer[Any]],
    before: Floats,
    after: Floats,
    *,
    scale: float,
    shift: float,
) -> Figure:
    """Share of tumour against mean probability, before and after calibration."""
    figure, axes = _square()
    axes.plot([0, 1], [0, 1], color=_GREY, linewidth=1, linestyle=":", label="perfect")
    for name, probabilities, colour, marker in (
        ("before", before, _GREY, "s"),
        ("after", after, _MODEL, "o"),
    ):
        _draw_reliability(axes, reliability_curve(labels, probabilities), name, colour, marker)
    axes.set(xlabel="mean probability in the bin", ylabel="share of tumour in the bin")
    axes.set_title(
        f"ECE {ece(labels, after):.3f} on holdout, {ece(labels, before):.3f} before\n"
        f"scale {scale:.2f}, shift {shift:+.2f} from val (areas show patches)",
        fontsize=11,
    )
    axes.legend(loc="upper left")
    return figure


def learning_curves(*fits: Mapping[str, Any]) -> Figure:
    """Loss and val AUROC by epoch, one column a ``fit.json``, the best epoch marked."""
    figure = Figure(figsize=(5.5 * len(fits), 6), dpi=_DPI, layout="constrained")
    grid = figure.subplots(2, len(fits), sharex="col", squeeze=False)
    for (losses, aurocs), fit in zip(grid.T, fits, strict=True):
        _draw_losses(losses, fit)
        _draw_val_auroc(aurocs, fit)
        for axes in (losses, aurocs):
            axes.axvline(fit["best_epoch"], color=_GREY, linestyle="--", linewidth=1)
        losses.set_title(_fit_conclusion(fit), fontsize=11)
    return figure


def _square() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(5.5, 5.5), dpi=_DPI, layout="constrained")
    axes = figure.add_subplot()
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    return figure, axes


def _mark_operating_point(axes: Axes, x: float, y: float) -> None:
    axes.plot(x, y, "o", markersize=9, color=_MARK, clip_on=False, label="operating point")


def _with_bounds(interval: Interval) -> str:
    if np.isnan(interval.low):
        return f"{interval.value:.3f}"
    return f"{interval.value:.3f} ({interval.low:.3f} to {interval.high:.3f})"


def _sensitivity(patches: Scored) -> float:
    return sensitivity.of(patches)


def _specificity(patches: Scored) -> float:
    return specificity.of(patches)


def _confusion_counts(patches: Scored) -> NDArray[np.intp]:
    """(2, 2): rows actual, columns called; normal first."""
    codes = 2 * patches.labels.astype(np.intp) + patches.called_tumour
    return np.bincount(codes, minlength=4).reshape(2, 2)


def _draw_reliability(
    axes: Axes, curve: ReliabilityCurve, name: str, colour: str, marker: str
) -> None:
    axes.plot(
        curve.mean_probability, curve.tumour_share, color=colour, marker=marker, ms=4, label=name
    )
    axes.scatter(
        curve.mean_probability,
        curve.tumour_share,
        s=2000 * curve.n_patches / curve.n_patches.sum(),
        color=colour,
        alpha=0.25,
        linewidths=0,
    )


def _draw_losses(axes: Axes, fit: Mapping[str, Any]) -> None:
    epochs = _column(fit, "epoch")
    axes.plot(epochs, _column(fit, "loss"), color=_TRAIN, marker="o", ms=4, label="train")
    axes.plot(epochs, _column(fit, "val_loss"), color=_VAL, marker="s", ms=4, label="val")
    axes.set_ylabel("loss")
    axes.legend()


def _draw_val_auroc(axes: Axes, fit: Mapping[str, Any]) -> None:
    axes.plot(_column(fit, "epoch"), _column(fit, "val_auroc"), color=_VAL, marker="s", ms=4)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="epoch (dashed: the best)", ylabel="val AUROC")


def _fit_conclusion(fit: Mapping[str, Any]) -> str:
    best = fit["history"][fit["best_epoch"] - 1]
    ended = "stopped early after" if fit["stopped_early"] else "of"
    return (
        f"{fit['stage']}: val AUROC {best['val_auroc']:.3f}, val loss {best['val_loss']:.3f}\n"
        f"in its best epoch {fit['best_epoch']}, {ended} {len(fit['history'])}"
    )


def _column(fit: Mapping[str, Any], name: str) -> list[float]:
    return [row[name] for row in fit["history"]]
