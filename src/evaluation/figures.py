"""The figures, each drawn once: PNG for files and MLflow, SVG inside the report, CSV for DVC.

Titles say what to conclude. Numbers come from ``metrics.json``; nothing is computed anew here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import escape
from io import StringIO
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from src.evaluation.calibration import probability, reliability_curve
from src.evaluation.curves import GRID, Band, precision_recall_curve, roc_curve
from src.evaluation.metrics import N_BINS, Scored, bin_of, scored

# Okabe and Ito's palette, which colour-blind readers can tell apart
_MODEL, _MARK, _GREY = "#0072b2", "#d55e00", "#777777"
# colours of the picture → of the page's style sheet, which has them for light and dark
_PAGE_COLOURS = {
    _MODEL: "--model",
    _MARK: "--mark",
    _GREY: "--grey",
    "#000000": "--ink",
    "#ffffff": "--paper",
    "#cccccc": "--line",
}
_DPI = 140
_HISTOGRAM_BINS = 40
_CLASSES = np.array(["normal", "tumour"])


def holdout_figures(
    holdout: pd.DataFrame, metrics: Mapping[str, Any], bands: Mapping[str, Band]
) -> dict[str, Figure]:
    """Figures by name: roc, precision_recall, reliability, histogram, confusion.

    ``holdout`` are the holdout rows of ``predictions.parquet``, ``metrics`` the content of
    ``metrics.json``, and ``bands`` those of :func:`src.evaluation.curves.curve_bands`.
    """
    patches = scored(
        holdout["label"],
        holdout["probability"],
        threshold=metrics["operating_point"]["threshold"],
    )
    baseline = scored(holdout["label"], holdout["baseline_probability"])
    return {
        "roc": _roc(patches, baseline, metrics, bands["roc"]),
        "precision_recall": _precision_recall(patches, metrics, bands["precision_recall"]),
        "reliability": _reliability(
            patches, probability(holdout["logit"]), metrics, bands["reliability"]
        ),
        "histogram": _histogram(patches, metrics["operating_point"]["threshold"]),
        "confusion": _confusion(patches, metrics["holdout"]),
    }


def learning_curves(*fits: Mapping[str, Any]) -> Figure:
    """Loss, val AUROC and learning rate by epoch; one row per ``fit.json``, best epoch marked."""
    figure = Figure(figsize=(10, 3.1 * len(fits)), dpi=_DPI, layout="constrained")
    for row, fit in zip(figure.subplots(len(fits), 3, squeeze=False), fits, strict=True):
        history = pd.DataFrame(fit["history"])
        losses, aurocs, rates = row
        losses.plot(history["epoch"], history["loss"], "o-", ms=4, color=_MODEL, label="train")
        losses.plot(history["epoch"], history["val_loss"], "s-", ms=4, color=_MARK, label="val")
        losses.legend()
        aurocs.plot(history["epoch"], history["val_auroc"], "s-", ms=4, color=_MARK)
        rates.plot(history["epoch"], history["learning_rate"], "o-", ms=4, color=_MODEL)
        rates.set_ylim(bottom=0)
        for axes, name in zip(row, ("loss", "val AUROC", "learning rate"), strict=True):
            axes.axvline(fit["best_epoch"], color=_GREY, linestyle="--", linewidth=1)
            axes.set(xlabel="epoch (dashed: the best)", ylabel=name)
            axes.set_xlim(0.5, len(history) + 0.5)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        best = fit["history"][fit["best_epoch"] - 1]
        ended = "stopped early after" if fit["stopped_early"] else "of"
        losses.set_title(
            f"{fit['stage']}: val AUROC {best['val_auroc']:.3f}, val loss {best['val_loss']:.3f} "
            f"in its best epoch {fit['best_epoch']}, {ended} {len(fit['history'])}",
            fontsize=11,
            loc="left",
        )
    return figure


def plot_tables(
    holdout: pd.DataFrame, fits: Sequence[Mapping[str, Any]], *, threshold: float
) -> dict[str, pd.DataFrame]:
    """What ``dvc plots`` draws, by name: roc, precision_recall, confusion, loss, learning_rate.

    ``holdout`` has columns label and probability; ``fits`` are the ``fit.json`` of ``train`` and
    ``finetune`` in that order, and ``epoch`` counts on from the one to the other.
    """
    patches = scored(holdout["label"], holdout["probability"], threshold=threshold)
    epochs = pd.DataFrame(
        [{**row, "stage": fit["stage"]} for fit in fits for row in fit["history"]]
    )
    epochs = epochs.rename(columns={"epoch": "stage_epoch"})
    epochs["epoch"] = range(1, len(epochs) + 1)
    return {
        "roc": pd.DataFrame(dict(zip(("fpr", "tpr"), roc_curve(patches), strict=True))),
        "precision_recall": pd.DataFrame(
            dict(zip(("recall", "precision"), precision_recall_curve(patches), strict=True))
        ),
        "confusion": pd.DataFrame(
            {
                "actual": _CLASSES[patches.labels.astype(np.intp)],
                "predicted": _CLASSES[patches.called_tumour.astype(np.intp)],
            }
        ),
        "loss": epochs[["stage", "stage_epoch", "epoch", "loss", "val_loss", "val_auroc"]],
        "learning_rate": epochs[["stage", "stage_epoch", "epoch", "learning_rate"]],
    }


def inline_svg(figure: Figure, name: str) -> str:
    """The figure as an ``<svg id=name>`` for a page: text as text, the page's colours and font.

    ``aria-label`` is the figure's title. ``data-width`` and ``data-height`` are what one unit of
    its first axes measures in the picture, so that a script can move what has a gid; such a gid
    becomes ``name-gid``, as every other id, since a page has several figures.
    """
    drawn = StringIO()
    # as text it can be read aloud; the salt keeps ids the same from run to run
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(drawn, format="svg", transparent=True, metadata={"Date": None})
    svg = drawn.getvalue()
    svg = svg[svg.index("<svg") :]
    # its style sheet would apply to the whole page; style.css has what it says
    svg = re.sub(r"<(metadata|style).*?</\1>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = svg.replace("url(#", f"url(#{name}-").replace('href="#', f'href="#{name}-')
    svg = re.sub(r"font: ([^;\"]*?px) [^;\"]*", r"font: \1 system-ui, sans-serif", svg)
    for colour, variable in _PAGE_COLOURS.items():
        svg = svg.replace(colour, f"var({variable})")
    axes = figure.axes[0]
    title = " ".join(t for t in (axes.get_title(), axes.get_title(loc="left")) if t)
    place, (width, height) = axes.get_position(), 72 * figure.get_size_inches()
    unit_width = place.width * width / np.ptp(axes.get_xlim())
    unit_height = place.height * height / np.ptp(axes.get_ylim())
    opening = (
        f'<svg id="{name}" class="chart" role="img" aria-label="{escape(title)}" '
        f'viewBox="0 0 {width:g} {height:g}" '
        f'data-width="{unit_width:.6g}" data-height="{unit_height:.6g}">'
    )
    return opening + svg[svg.index(">") + 1 :]


def _roc(patches: Scored, baseline: Scored, metrics: Mapping[str, Any], band: Band) -> Figure:
    figure, axes = _square()
    values, floor = metrics["holdout"], metrics["baseline"]["auroc"]
    axes.fill_between(GRID, band.low, band.high, color=_MODEL, alpha=0.18, linewidth=0)
    axes.plot([0, 1], [0, 1], color=_GREY, linewidth=1, linestyle=":", label="chance, 0.5")
    axes.plot(*roc_curve(baseline), color=_GREY, label=f"colour baseline, {floor:.3f}")
    axes.plot(*roc_curve(patches), color=_MODEL, linewidth=2, label=f"model, {values['auroc']:.3f}")
    _mark_operating_point(axes, 1 - values["specificity"], values["sensitivity"])
    axes.set(xlabel="1 − specificity", ylabel="sensitivity")
    axes.set_title(
        f"AUROC {_with_bounds(values, 'auroc')} on holdout,\n"
        f"{values['auroc'] - floor:+.3f} against the colour baseline",
        fontsize=11,
    )
    axes.legend(loc="lower right")
    return figure


def _precision_recall(patches: Scored, metrics: Mapping[str, Any], band: Band) -> Figure:
    figure, axes = _square()
    values, prevalence = metrics["holdout"], float(patches.labels.mean())
    axes.fill_between(GRID, band.low, band.high, color=_MODEL, alpha=0.18, linewidth=0)
    axes.axhline(
        prevalence, color=_GREY, linewidth=1, linestyle=":", label=f"chance, {prevalence:.2f}"
    )
    recall, precision = precision_recall_curve(patches)
    axes.step(recall, precision, where="pre", color=_MODEL, linewidth=2, label="model")
    if "ppv" in values:
        _mark_operating_point(axes, values["sensitivity"], values["ppv"])
    axes.set(xlabel="recall (sensitivity)", ylabel="precision (PPV)")
    axes.set_title(
        f"Average precision {_with_bounds(values, 'average_precision')}\non holdout", fontsize=11
    )
    axes.legend(loc="lower left")
    return figure


def _reliability(patches: Scored, before: Any, metrics: Mapping[str, Any], band: Band) -> Figure:
    """Share of tumour by bin of the probability, before and after calibration."""
    figure, axes = _square()
    axes.plot([0, 1], [0, 1], color=_GREY, linewidth=1, linestyle=":", label="perfect")
    curve = reliability_curve(patches.labels, before)
    axes.plot(curve.mean_probability, curve.tumour_share, "s-", ms=3, color=_GREY, label="before")
    curve = reliability_curve(patches.labels, patches.probabilities)
    filled = np.bincount(bin_of(patches.probabilities), minlength=N_BINS) > 0
    axes.vlines(curve.mean_probability, band.low[filled], band.high[filled], color=_MODEL)
    axes.plot(curve.mean_probability, curve.tumour_share, color=_MODEL, label="after")
    sizes = 10 + 90 * curve.n_patches / curve.n_patches.max()
    axes.scatter(curve.mean_probability, curve.tumour_share, sizes, color=_MODEL)
    axes.set(xlabel="mean probability in the bin", ylabel="share of tumour in the bin")
    point = metrics["operating_point"]
    axes.set_title(
        f"ECE {metrics['holdout']['ece']:.3f} on holdout, "
        f"{metrics['before_calibration']['ece']:.3f} before\n"
        f"scale {point['scale']:.2f}, shift {point['shift']:+.2f} from val",
        fontsize=11,
    )
    axes.legend(loc="upper left")
    return figure


def _histogram(patches: Scored, threshold: float) -> Figure:
    figure = Figure(figsize=(4.6, 3.4), dpi=_DPI, layout="constrained")
    axes = figure.add_subplot()
    edges = np.linspace(0, 1, _HISTOGRAM_BINS + 1)
    for name, of_class, colour, line in (
        ("normal", ~patches.labels, _MODEL, (0, (4, 1.5))),
        ("tumour", patches.labels, _MARK, "-"),
    ):
        counts = np.histogram(patches.probabilities[of_class], edges)[0]
        axes.stairs(counts, edges, color=colour, linestyle=line, linewidth=1.5, label=name)
    axes.axvline(
        threshold,
        color="black",
        linestyle="--",
        linewidth=1.2,
        gid="threshold",
        label="threshold",
        clip_on=False,
    )
    axes.set(xlabel="probability of tumour", ylabel="patches", xlim=(-0.02, 1.02))
    axes.set_ylim(bottom=0)
    axes.set_title("Holdout patches by probability", fontsize=11)
    axes.legend()
    return figure


def _confusion(patches: Scored, values: Mapping[str, Any]) -> Figure:
    """Rows actual, columns called; normal first."""
    codes = 2 * patches.labels.astype(np.intp) + patches.called_tumour
    counts = np.bincount(codes, minlength=4).reshape(2, 2)
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
    axes.set_xticks([0, 1], _CLASSES)
    axes.set_yticks([0, 1], _CLASSES)
    axes.set_title(
        f"A threshold of {patches.threshold:.3g} finds {values['sensitivity']:.1%} of tumour\n"
        f"and clears {values['specificity']:.1%} of normal holdout patches",
        fontsize=11,
    )
    return figure


def _square() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(4.6, 4.6), dpi=_DPI, layout="constrained")
    axes = figure.add_subplot()
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    return figure, axes


def _mark_operating_point(axes: Axes, x: float, y: float) -> None:
    axes.plot(
        x, y, "o", markersize=9, color=_MARK, clip_on=False, gid="marker", label="operating point"
    )


def _with_bounds(values: Mapping[str, Any], name: str) -> str:
    if f"{name}_low" not in values:
        return f"{values[name]:.3f}"
    return f"{values[name]:.3f} ({values[f'{name}_low']:.3f} to {values[f'{name}_high']:.3f})"
