"""Pictures of the packed patches: one question each, its answer with numbers in the title.

Each function takes values and returns a matplotlib ``Figure``; none writes. The colours are the
Okabe-Ito ones, told apart with any colour vision.
"""

from collections.abc import Sequence
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

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DPI = 110
CLASSES = ("normal", "tumour")
CLASS_COLOURS = ("#0072B2", "#D55E00")
_GREY = "#555555"
_CENTRE_PX = 32
_NAMED_SLIDES = 40


def label_distribution(n_by_label: NDArray[np.int64], n_test: int) -> Figure:
    """Bars of labelled patches by class, (2,) counts, beside the number of unlabelled ones."""
    n = int(n_by_label.sum())
    weights = n / (2 * np.maximum(n_by_label, 1))
    figure = _figure(
        f"{_percent(n_by_label[1] / n)} of {n:,} labelled patches are tumour",
        f"balanced class weights {weights[0]:.3f} normal, {weights[1]:.3f} tumour; "
        f"{n_test:,} more patches have no label (test)",
        size=(8.5, 2.8),
    )
    axes = figure.subplots()
    bars = axes.barh(CLASSES, n_by_label, color=CLASS_COLOURS)
    texts = [f"{count:,}  ({_percent(count / n)})" for count in n_by_label]
    axes.bar_label(bars, labels=texts, padding=5)
    axes.invert_yaxis()
    axes.set_xlabel("labelled patches")
    axes.margins(x=0.2)
    _bare(axes)
    return figure


def sample_grid(patches: NDArray[np.uint8], *, label: int, n_of_label: int) -> Figure:
    """Random patches (k, 96, 96, 3) of one class, the labelled centre drawn in."""
    meaning = ("no tumour inside the square", "tumour inside the square")[label]
    return _gallery(
        patches,
        captions=None,
        title=f"{CLASSES[label].capitalize()} means {meaning}, whatever lies around it",
        subtitle=f"{len(patches)} of {n_of_label:,} {CLASSES[label]} patches, drawn at random; "
        f"the square is the centre {_CENTRE_PX} × {_CENTRE_PX} px",
        columns=8 if len(patches) <= 32 else 10,
        centre=True,
    )


def channel_histograms(survey: PixelSurvey) -> Figure:
    """Share of pixels by value, one panel a channel, one line a class."""
    means = [channel_statistics(survey.histogram[label]).mean for label in range(2)]
    widest = int(np.argmax(np.abs(means[1] - means[0])))
    darker = "darker" if means[1][widest] < means[0][widest] else "brighter"
    figure = _figure(
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
        _bare(axes)
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
    figure = _figure(
        f"Tumour − normal: {_signed(inside)} grey levels in the centre, "
        f"{_signed(outside)} around it",
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
        _draw_centre(axes, side=difference.shape[0])
        axes.set_axis_off()
    return figure


def stain_scatter(
    stains: NDArray[np.float64],
    labels: NDArray[np.uint8],
    slides: pd.Series | None,
    shown: NDArray[np.int64],
) -> Figure:
    """Haematoxylin against eosin, a point a patch that isn't blank, by class and, if known, slide.

    Parameters
    ----------
    stains : (n, 2) mean optical density of haematoxylin and eosin
    slides : (n,) names, null where unknown; None where no slide is known
    shown : positions of the patches drawn; the numbers in the title are of all n
    """
    by_class = _describe_separation(stains, labels)
    if slides is None:
        title, subtitle = by_class[0].upper() + by_class[1:], "0.5 is chance"
    else:
        known = slides.notna().to_numpy(dtype=bool)
        shares = [share_explained(stains[known, stain], slides[known]) for stain in range(2)]
        title = (
            f"The slide explains {_percent(shares[0])} of the spread in haematoxylin, "
            f"{_percent(shares[1])} in eosin"
        )
        subtitle = f"{by_class} (0.5 is chance)"
    subtitle += f"; {len(shown):,} of {len(labels):,} patches drawn, blank ones left out"
    figure = _figure(title, subtitle, size=(7.5, 5.8) if slides is None else (11.5, 5.4))
    panels = figure.subplots(1, 1 if slides is None else 2, squeeze=False, sharey=True)[0]
    _scatter_by_class(panels[0], stains[shown], labels[shown])
    if slides is not None:
        _scatter_by_slide(panels[1], stains, slides, shown)
    for axes in panels:
        axes.set_xlabel("haematoxylin, mean optical density")
        _bare(axes)
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


def _scatter_by_slide(
    axes: "Axes", stains: NDArray[np.float64], slides: pd.Series, shown: NDArray[np.int64]
) -> None:
    centres = pd.DataFrame(stains, columns=["h", "e"]).groupby(slides.to_numpy(dtype=object)).mean()
    place = centres["h"].rank(method="first").sub(1) / max(len(centres) - 1, 1)
    of_shown = slides.iloc[shown].map(place)
    known = of_shown.notna().to_numpy(dtype=bool)
    drawn = stains[shown]
    if not known.all():
        axes.scatter(
            drawn[~known, 0],
            drawn[~known, 1],
            c="#BBBBBB",
            s=7,
            linewidths=0,
            label="unknown slide",
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
        label="mean of a slide",
    )
    axes.legend(frameon=False, loc="best")
    axes.set_title(f"by slide ({len(centres):,}), coloured by mean haematoxylin", fontsize=11)


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
    figure = _figure(
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
        axes.set_xticks(position, [_shorten(str(name)) for name in counts.index], rotation=90)
    else:
        axes.set_xlabel("slides, largest first")
    axes.set_ylabel("labelled patches")
    axes.margins(x=0.01)
    axes.legend(frameon=False)
    _bare(axes)
    return figure


def blank_gallery(
    whitest: NDArray[np.uint8],
    blackest: NDArray[np.uint8],
    *,
    captions: Sequence[str],
    n_white: int,
    n_black: int,
) -> Figure:
    """White patches above black ones, (k, 96, 96, 3) each, as many of both."""
    return _gallery(
        np.concatenate([whitest, blackest]),
        captions=captions,
        title=f"{n_white:,} blank white and {n_black:,} blank black patches are flagged",
        subtitle="labelled patches, the flagged first: upper row then the brightest, lower row the "
        "darkest; number: mean grey level",
        columns=len(whitest),
    )


def blur_gallery(
    patches: NDArray[np.uint8],
    *,
    captions: Sequence[str],
    n_blurred: int,
    n: int,
    share_of_median: float,
) -> Figure:
    """The patches (k, 96, 96, 3) of lowest Laplacian variance, blurriest first."""
    return _gallery(
        patches,
        captions=captions,
        title=f"{n_blurred:,} of {n:,} patches are blurred or empty "
        f"(sharpness under {share_of_median * 100:g} % of the median)",
        subtitle="labelled patches without a blank flag, blurriest first; number: variance of the "
        "Laplacian as % of the median",
        columns=8,
    )


def duplicate_gallery(
    patches: NDArray[np.uint8],
    *,
    captions: Sequence[str],
    n_sets: int,
    n_conflicts: int,
    n_across: int,
) -> Figure:
    """The first patch (k, 96, 96, 3) of each set of identical ones."""
    return _gallery(
        patches,
        captions=captions,
        title=f"{n_sets:,} sets of patches with identical pixels; "
        f"{n_conflicts:,} with contradicting labels",
        subtitle=f"one patch a set, {len(patches):,} sets shown; "
        f"{n_across:,} sets lie in both train and test",
        columns=6,
    )


def channel_reference(train: ChannelStatistics, test: ChannelStatistics | None) -> Figure:
    """Mean and standard deviation by channel beside Kaggle's training set."""
    passed = within_reference(train)
    verdict = ", ".join(
        f"{name} {'pass' if ok else 'fail'}" for name, ok in zip(CHANNELS, passed, strict=True)
    )
    figure = _figure(
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
        _bare(axes)
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


def _gallery(
    patches: NDArray[np.uint8],
    *,
    captions: Sequence[str] | None,
    title: str,
    subtitle: str,
    columns: int,
    centre: bool = False,
) -> Figure:
    columns = max(min(columns, len(patches)), 1)
    caption_lines = captions[0].count("\n") + 1 if captions else 0
    # all patches in one image: an axes for each takes seconds to lay out
    mosaic, corners = _mosaic(patches, columns, caption_px=14 * caption_lines)
    height, width = mosaic.shape[:2]
    scale_in = 1.35 / patches.shape[2]
    figure = _figure(title, subtitle, size=(max(width * scale_in, 9), height * scale_in + 0.75))
    axes = figure.subplots()
    axes.imshow(mosaic, interpolation="nearest")
    axes.set_axis_off()
    axes.set_anchor("W")
    for position, (top, left) in enumerate(corners):
        _draw_frame(axes, shape=patches.shape[1:3], top=top, left=left)
        if centre:
            _draw_centre(axes, side=patches.shape[1], top=top, left=left)
        if captions:
            middle = left + patches.shape[2] / 2
            axes.text(middle, top - 2, captions[position], fontsize=8, ha="center", va="bottom")
    return figure


def _mosaic(
    patches: NDArray[np.uint8], columns: int, *, caption_px: int
) -> tuple[NDArray[np.uint8], list[tuple[int, int]]]:
    """One white image with all patches (k, h, w, 3), and each one's (top, left) in it."""
    gap_px = 6
    n, patch_height, patch_width = patches.shape[:3]
    rows = -(-n // columns)
    step_y, step_x = patch_height + gap_px + caption_px, patch_width + gap_px
    mosaic = np.full((rows * step_y, columns * step_x, 3), 255, dtype=np.uint8)
    corners = []
    for position, patch in enumerate(patches):
        top = position // columns * step_y + caption_px
        left = position % columns * step_x
        mosaic[top : top + patch_height, left : left + patch_width] = patch
        corners.append((top, left))
    return mosaic, corners


def _draw_frame(axes: "Axes", *, shape: tuple[int, ...], top: int, left: int) -> None:
    """A thin line around a patch: a white one would vanish on the page."""
    from matplotlib.patches import Rectangle

    height, width = shape
    corner = (left - 0.5, top - 0.5)
    axes.add_patch(Rectangle(corner, width, height, fill=False, edgecolor="#999999", lw=0.5))


def _draw_centre(axes: "Axes", *, side: int, top: int = 0, left: int = 0) -> None:
    from matplotlib.patches import Rectangle

    start = (side - _CENTRE_PX) / 2 - 0.5
    # a light line inside a dark one shows on any tissue
    for colour, width in (("black", 2.4), ("white", 1.0)):
        axes.add_patch(
            Rectangle(
                (left + start, top + start),
                _CENTRE_PX,
                _CENTRE_PX,
                fill=False,
                edgecolor=colour,
                lw=width,
            )
        )


def _centre_mask(side: int) -> NDArray[np.bool_]:
    mask = np.zeros((side, side), dtype=bool)
    start = (side - _CENTRE_PX) // 2
    mask[start : start + _CENTRE_PX, start : start + _CENTRE_PX] = True
    return mask


def _figure(title: str, subtitle: str, *, size: tuple[float, float]) -> Figure:
    figure = Figure(figsize=size, dpi=DPI, layout="constrained")
    width, height = size
    # the title band: constrained layout leaves it free
    band = (0.62 + 0.17 * subtitle.count("\n")) / height
    figure.get_layout_engine().set(rect=(0, 0, 1, 1 - band))  # type: ignore[union-attr, call-arg]
    figure.text(0.12 / width, 1 - 0.10 / height, title, fontsize=13, weight="bold", va="top")
    figure.text(0.12 / width, 1 - 0.36 / height, subtitle, fontsize=9.5, color=_GREY, va="top")
    return figure


def _bare(axes: "Axes") -> None:
    axes.spines[["top", "right"]].set_visible(False)


def _percent(share: float) -> str:
    return f"{share * 100:.1f} %"


def _signed(value: float) -> str:
    return f"{value:+.1f}".replace("-", "−")


def _shorten(name: str) -> str:
    return name if len(name) <= 18 else name[:8] + "…" + name[-8:]
