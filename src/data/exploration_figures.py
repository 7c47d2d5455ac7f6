"""Pictures of the packed patches: one question each, its answer with numbers in the title.

Each function takes values and returns a matplotlib ``Figure``; none writes. The colours are the
Okabe-Ito ones, told apart with any colour vision.
"""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from src.data.exploration import (
    CHANNELS,
    REFERENCE_MEAN,
    REFERENCE_STD,
    REFERENCE_TOLERANCE,
    ChannelStatistics,
    PixelSurvey,
    channel_statistics,
    mean_patch,
    ranked_above,
    share_explained,
    within_reference,
)
from src.data.figure_parts import (
    CENTRE_PX,
    CLASS_COLOURS,
    bare,
    draw_centre,
    percent,
    shorten,
    signed,
    titled_figure,
)
from src.data.terms import CLASSES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_NAMED_SLIDES = 40


def label_distribution(n_by_label: NDArray[np.int64], n_test: int) -> Figure:
    """Bars of labelled patches by class, (2,) counts, beside the number of unlabelled ones."""
    n = int(n_by_label.sum())
    weights = n / (2 * np.maximum(n_by_label, 1))
    figure = titled_figure(
        f"{percent(n_by_label[1] / n)} of {n:,} labelled patches are tumour",
        f"balanced class weights {weights[0]:.3f} normal, {weights[1]:.3f} tumour; "
        f"{n_test:,} more patches have no label (test)",
        size=(8.5, 2.8),
    )
    axes = figure.subplots()
    bars = axes.barh(CLASSES, n_by_label, color=CLASS_COLOURS)
    texts = [f"{count:,}  ({percent(count / n)})" for count in n_by_label]
    axes.bar_label(bars, labels=texts, padding=5)
    axes.invert_yaxis()
    axes.set_xlabel("labelled patches")
    axes.margins(x=0.2)
    bare(axes)
    return figure


def channel_histograms(survey: PixelSurvey) -> Figure:
    """Share of pixels by value, one panel a channel, one line a class."""
    means = [channel_statistics(survey.histogram[label]).mean for label in range(2)]
    widest = int(np.argmax(np.abs(means[1] - means[0])))
    darker = "darker" if means[1][widest] < means[0][widest] else "brighter"
    figure = titled_figure(
        f"Tumour patches are {darker} in {CHANNELS[widest]}: "
        f"mean {means[1][widest]:.2f} against {means[0][widest]:.2f}",
        "share of pixels by value; dashed lines are means; saturated pixels (value 1) "
        "are not drawn, their share stands above",
        size=(11, 4.0),
    )
    value = np.arange(256) / 255
    panels = figure.subplots(1, 3, sharey=True)
    for channel, axes in enumerate(panels):
        saturated = []
        for label, colour in enumerate(CLASS_COLOURS):
            share = survey.histogram[label, channel] / survey.histogram[label, channel].sum() * 100
            axes.plot(value[:-1], share[:-1], color=colour, label=CLASSES[label])
            axes.axvline(means[label][channel], color=colour, linestyle="--", linewidth=1)
            saturated.append(f"{share[-1]:.1f} % of {CLASSES[label]}")
        axes.set_title(f"{CHANNELS[channel]}\nsaturated: {', '.join(saturated)}", fontsize=9.5)
        axes.set_xlabel("value, 0 to 1")
        bare(axes)
    panels[0].set_ylim(bottom=0)
    panels[0].set_ylabel("% of pixels")
    panels[0].legend(frameon=False, loc="upper left")
    return figure


def mean_patches(survey: PixelSurvey) -> Figure:
    """Mean patch of each class, and where their brightness differs."""
    means = [mean_patch(survey, label) for label in range(2)]
    difference = (means[1] - means[0]).mean(axis=-1)
    centre = _centre_mask(difference.shape[0])
    inside, outside = float(difference[centre].mean()), float(difference[~centre].mean())
    figure = titled_figure(
        f"Tumour − normal: {signed(inside)} grey levels in the centre, {signed(outside)} around it",
        "a mean patch shows no tissue: only a centre, border or decoding fault would show here",
        size=(10.5, 3.9),
    )
    panels = figure.subplots(1, 3)
    for label, axes in enumerate(panels[:2]):
        axes.imshow(means[label].round().astype(np.uint8))
        axes.set_title(f"mean of {survey.n_patches[label]:,} {CLASSES[label]}", fontsize=11)
    limit = max(float(np.abs(difference).max()), 1e-9)
    image = panels[2].imshow(difference, cmap="PuOr_r", vmin=-limit, vmax=limit)
    panels[2].set_title("tumour − normal", fontsize=11)
    figure.colorbar(image, ax=panels[2], label="grey levels of 255", shrink=0.85)
    for axes in panels:
        draw_centre(axes, side=difference.shape[0])
        axes.set_axis_off()
    return figure


def stain_scatter(
    stains: NDArray[np.float64],
    labels: NDArray[np.uint8],
    units: pd.Series | None,
    shown: NDArray[np.int64],
    *,
    unit: str = "slide",
) -> Figure:
    """Haematoxylin against eosin, a point a patch that isn't blank, by class and by slide.

    Parameters
    ----------
    stains : (n, 2) mean optical density of haematoxylin and eosin
    units : (n,) names of slides or of what stands in for them, null where unknown; None for none
    unit : what ``units`` are
    shown : positions of the patches drawn; the numbers in the title are of all n
    """
    by_class = _describe_separation(stains, labels)
    if units is None:
        title, subtitle = by_class[0].upper() + by_class[1:], "0.5 is chance"
    else:
        known = units.notna().to_numpy(dtype=bool)
        shares = [share_explained(stains[known, stain], units[known]) for stain in range(2)]
        title = (
            f"The {unit} explains {percent(shares[0])} of the spread in haematoxylin, "
            f"{percent(shares[1])} in eosin"
        )
        subtitle = f"{by_class} (0.5 is chance)"
    subtitle += f"; {len(shown):,} of {len(labels):,} patches drawn, blank ones left out"
    if unit != "slide":
        subtitle += f"\na {unit} stands in for a slide"
    figure = titled_figure(title, subtitle, size=(7.5, 5.8) if units is None else (11.5, 5.4))
    panels = figure.subplots(1, 1 if units is None else 2, squeeze=False, sharey=True)[0]
    _scatter_by_class(panels[0], stains[shown], labels[shown])
    if units is not None:
        _scatter_by_unit(panels[1], stains, units, shown, unit)
    for axes in panels:
        axes.set_xlabel("haematoxylin, mean optical density")
        bare(axes)
    panels[0].set_ylabel("eosin, mean optical density")
    return figure


def _describe_separation(stains: NDArray[np.float64], labels: NDArray[np.uint8]) -> str:
    aurocs = [ranked_above(stains[:, stain], labels) for stain in range(2)]
    best = int(np.argmax(np.abs(np.array(aurocs) - 0.5)))
    name = ("haematoxylin", "eosin")[best]
    return f"mean {name} alone tells tumour from normal with AUROC {aurocs[best]:.2f}"


def _scatter_by_class(axes: "Axes", stains: NDArray[np.float64], labels: NDArray[np.uint8]) -> None:
    colours = np.array(CLASS_COLOURS)[labels]
    axes.scatter(stains[:, 0], stains[:, 1], c=colours, s=7, alpha=0.45, linewidths=0)
    for label, colour in enumerate(CLASS_COLOURS):
        axes.scatter([], [], c=colour, s=30, label=CLASSES[label])
    axes.legend(frameon=False, loc="best")
    axes.set_title("by class", fontsize=11)


def _scatter_by_unit(
    axes: "Axes",
    stains: NDArray[np.float64],
    units: pd.Series,
    shown: NDArray[np.int64],
    unit: str,
) -> None:
    centres = pd.DataFrame(stains, columns=["h", "e"]).groupby(units.to_numpy(dtype=object)).mean()
    place = centres["h"].rank(method="first").sub(1) / max(len(centres) - 1, 1)
    of_shown = units.iloc[shown].map(place)
    known = of_shown.notna().to_numpy(dtype=bool)
    drawn = stains[shown]
    if not known.all():
        axes.scatter(
            drawn[~known, 0],
            drawn[~known, 1],
            c="#BBBBBB",
            s=7,
            linewidths=0,
            label=f"unknown {unit}",
        )
    axes.scatter(
        drawn[known, 0],
        drawn[known, 1],
        c=of_shown[known],
        cmap="viridis",
        s=7,
        alpha=0.45,
        linewidths=0,
    )
    axes.scatter(
        centres["h"],
        centres["e"],
        c=place,
        cmap="viridis",
        s=60,
        edgecolors="black",
        linewidths=1,
        label=f"mean of a {unit}",
    )
    axes.legend(frameon=False, loc="best")
    axes.set_title(f"by {unit} ({len(centres):,})", fontsize=11)


def patches_per_slide(slides: pd.Series, labels: NDArray[np.uint8]) -> Figure:
    """Stacked bars of patches by slide and class; patches of unknown slide are left out."""
    counts = pd.crosstab(slides.to_numpy(dtype=object), labels).reindex(
        columns=[0, 1], fill_value=0
    )
    total = counts.sum(axis=1)
    counts = counts.loc[total.sort_values(ascending=False, kind="stable").index]
    n_both = int((counts > 0).all(axis=1).sum())
    only = [int((counts[1 - label] == 0).sum()) for label in range(2)]
    unknown = int(slides.isna().sum())
    figure = titled_figure(
        f"{len(counts):,} slides: {n_both:,} hold both classes, {only[0]:,} only normal, "
        f"{only[1]:,} only tumour patches",
        f"{total.min():,} to {total.max():,} patches a slide, median {total.median():,.0f}; "
        f"{unknown:,} patches of unknown slide",
        size=(10.5, 4.6),
    )
    axes = figure.subplots()
    position = np.arange(len(counts))
    width = 0.85 if len(counts) <= _NAMED_SLIDES else 1.0
    axes.bar(position, counts[0], width, color=CLASS_COLOURS[0], label="normal")
    axes.bar(position, counts[1], width, bottom=counts[0], color=CLASS_COLOURS[1], label="tumour")
    if len(counts) <= _NAMED_SLIDES:
        axes.set_xticks(position, [shorten(str(name)) for name in counts.index], rotation=90)
    else:
        axes.set_xlabel("slides, largest first")
    axes.set_ylabel("labelled patches")
    axes.margins(x=0.01)
    axes.legend(frameon=False)
    bare(axes)
    return figure


def channel_reference(train: ChannelStatistics, test: ChannelStatistics | None) -> Figure:
    """Mean and standard deviation by channel beside Kaggle's training set."""
    passed = within_reference(train)
    verdict = ", ".join(
        f"{name} {'pass' if ok else 'fail'}" for name, ok in zip(CHANNELS, passed, strict=True)
    )
    figure = titled_figure(
        f"{sum(passed)} of 3 channels are like Kaggle's training set: {verdict}",
        f"pass: mean and standard deviation within ±{REFERENCE_TOLERANCE} (grey band). A fail is "
        "expected on generated\npatches; on Kaggle's it means wrong decoding or channel order",
        size=(9.5, 4.2),
    )
    panels = figure.subplots(1, 2)
    references = {"mean": REFERENCE_MEAN, "std": REFERENCE_STD}
    for axes, (name, reference) in zip(panels, references.items(), strict=True):
        _draw_reference(axes, np.array(reference))
        _dots(axes, getattr(train, name), -0.1, "o", "#0072B2", "train")
        if test is not None:
            _dots(axes, getattr(test, name), 0.1, "D", "#009E73", "test")
        axes.set_title("mean" if name == "mean" else "standard deviation", fontsize=11)
        axes.set_xticks(range(3), CHANNELS)
        axes.set_xlim(-0.9, 2.8)
        axes.margins(y=0.12)
        bare(axes)
    panels[0].set_ylabel("value, 0 to 1")
    panels[1].legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def _draw_reference(axes: "Axes", reference: NDArray[np.float64]) -> None:
    for channel, value in enumerate(reference):
        axes.fill_between(
            [channel - 0.3, channel + 0.3],
            value - REFERENCE_TOLERANCE,
            value + REFERENCE_TOLERANCE,
            color="#CCCCCC",
            linewidth=0,
            label="Kaggle's train ± tolerance" if channel == 0 else None,
        )


def _dots(
    axes: "Axes",
    values: NDArray[np.float64],
    offset: float,
    marker: str,
    colour: str,
    label: str,
) -> None:
    axes.plot(np.arange(3) + offset, values, marker, color=colour, label=label, markersize=7)
    for channel, value in enumerate(values):
        side = 1 if offset > 0 else -1
        axes.annotate(
            f"{value:.3f}",
            (channel + offset, value),
            xytext=(9 * side, 0),
            textcoords="offset points",
            ha="left" if side > 0 else "right",
            va="center",
            fontsize=9,
            color=colour,
        )


def _centre_mask(side: int) -> NDArray[np.bool_]:
    mask = np.zeros((side, side), dtype=bool)
    start = (side - CENTRE_PX) // 2
    mask[start : start + CENTRE_PX, start : start + CENTRE_PX] = True
    return mask
