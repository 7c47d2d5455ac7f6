"""Pictures of the packed patches: one question each, its answer with numbers in the title.

A new picture is one function and one line of :func:`draw_pictures`.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from src import patch
from src.data.measurements import BLANK_BLACK, BLANK_WHITE
from src.data.patches import has_flag
from src.exploration.findings import (
    BLURRED_SHARE_OF_MEDIAN,
    FEATURES,
    LARGE_SHIFT,
    Findings,
    Packed,
    count_sets,
)
from src.exploration.statistics import (
    CHANNELS,
    channel_moments,
    ranked_above,
    share_explained,
)
from src.exploration.style import (
    bare,
    counted,
    draw_centre,
    gallery,
    percent,
    shown_of,
    titled_figure,
)
from src.params import ExploreParams

_GALLERY_PATCHES = 16
_SCATTER_PATCHES = 4_000
_SETS_SHOWN = 12
_NAMED_SLIDES = 40


def draw_pictures(
    packed: Packed, findings: Findings, params: ExploreParams
) -> Iterator[tuple[str, Figure]]:
    """File name and figure of every picture that there is something to show in."""
    yield "labels.png", labels(packed, findings)
    yield "samples_normal.png", samples(packed, params, label=0)
    yield "samples_tumour.png", samples(packed, params, label=1)
    yield "channel_histograms.png", channel_histograms(findings)
    yield "mean_patches.png", mean_patches(findings)
    yield "stain.png", stain(packed, findings, seed=params.seed)
    yield "splits.png", splits(packed, findings)
    yield "blank.png", blank(packed, findings)
    yield "blurred.png", blurred(packed, findings)
    if packed.train["slide"].notna().any():
        yield "slides.png", slides(packed)
    if findings.duplicates:
        yield "duplicates.png", duplicates(packed, findings)
    if findings.near_duplicates:
        yield "near_duplicates.png", near_duplicates(packed, findings)


def labels(packed: Packed, findings: Findings) -> Figure:
    """Labelled patches by class, next to the number of unlabelled ones."""
    n_by_label = findings.survey.n_patches
    n = int(n_by_label.sum())
    weights = n / (2 * n_by_label)
    figure = titled_figure(
        f"{percent(n_by_label[1] / n)} of {n:,} labelled patches are tumour",
        f"balanced class weights {weights[0]:.3f} normal, {weights[1]:.3f} tumour; "
        f"{len(packed.test):,} more patches have no label (test)",
        size=(8.5, 2.8),
    )
    axes = figure.subplots()
    bars = axes.barh(patch.CLASSES, n_by_label, color=patch.CLASS_COLOURS)
    texts = [f"{count:,}  ({percent(count / n)})" for count in n_by_label]
    axes.bar_label(bars, labels=texts, padding=5)
    axes.invert_yaxis()
    axes.set_xlabel("labelled patches")
    axes.margins(x=0.2)
    bare(axes)
    return figure


def samples(packed: Packed, params: ExploreParams, *, label: int) -> Figure:
    """Random patches of one class, the labelled centre drawn in."""
    rng = np.random.default_rng([params.seed, label])
    of_label = np.flatnonzero(packed.labels == label)
    drawn = np.sort(rng.permutation(of_label)[: params.patches_per_class])
    name = patch.CLASSES[label]
    meaning = ("no tumour inside the square", "tumour inside the square")[label]
    return gallery(
        packed.pixels["train"][drawn],
        captions=None,
        title=f"{name.capitalize()} means {meaning}, whatever lies around it",
        subtitle=f"{len(drawn)} of {len(of_label):,} {name} patches, drawn at random; "
        f"the square is the centre {patch.CENTRE_PX} × {patch.CENTRE_PX} px",
        columns=8 if len(drawn) <= 32 else 10,
        centre=True,
    )


def channel_histograms(findings: Findings) -> Figure:
    """Share of pixels by value, one panel per channel, one line per class."""
    histogram = findings.survey.histogram
    means = [channel_moments(histogram[label])[0] for label in range(2)]
    widest = int(np.argmax(np.abs(means[1] - means[0])))
    darker = "darker" if means[1][widest] < means[0][widest] else "brighter"
    figure = titled_figure(
        f"Tumour patches are {darker} in {CHANNELS[widest]}: "
        f"mean {means[1][widest]:.2f} against {means[0][widest]:.2f}",
        "share of pixels by value; dashed lines are means; saturated pixels (value 1) "
        "are not drawn, their share is above",
        size=(11, 4.0),
    )
    value = np.arange(256) / 255
    panels = figure.subplots(1, 3, sharey=True)
    for channel, axes in enumerate(panels):
        saturated = []
        for label, colour in enumerate(patch.CLASS_COLOURS):
            share = histogram[label, channel] / histogram[label, channel].sum() * 100
            axes.plot(value[:-1], share[:-1], color=colour, label=patch.CLASSES[label])
            axes.axvline(means[label][channel], color=colour, linestyle="--", linewidth=1)
            saturated.append(f"{share[-1]:.1f} % of {patch.CLASSES[label]}")
        axes.set_title(f"{CHANNELS[channel]}\nsaturated: {', '.join(saturated)}", fontsize=9.5)
        axes.set_xlabel("value, 0 to 1")
        bare(axes)
    panels[0].set_ylim(bottom=0)
    panels[0].set_ylabel("% of pixels")
    panels[0].legend(frameon=False, loc="upper left")
    return figure


def mean_patches(findings: Findings) -> Figure:
    """Mean patch of each class, and where their brightness differs."""
    survey = findings.survey
    means = [survey.pixel_sum[label] / survey.n_patches[label] for label in range(2)]
    difference = (means[1] - means[0]).mean(axis=-1)
    centre = np.zeros(difference.shape, dtype=bool)
    centre[patch.CENTRE, patch.CENTRE] = True
    inside, outside = (
        f"{difference[where].mean():+.1f}".replace("-", "−") for where in (centre, ~centre)
    )
    figure = titled_figure(
        f"Tumour − normal: {inside} grey levels in the centre, {outside} around it",
        "a mean patch shows no tissue: only a centre, border or decoding fault would show here",
        size=(10.5, 3.9),
    )
    panels = figure.subplots(1, 3)
    for label, axes in enumerate(panels[:2]):
        axes.imshow(means[label].round().astype(np.uint8))
        axes.set_title(f"mean of {survey.n_patches[label]:,} {patch.CLASSES[label]}", fontsize=11)
    limit = max(float(np.abs(difference).max()), 1e-9)
    image = panels[2].imshow(difference, cmap="PuOr_r", vmin=-limit, vmax=limit)
    panels[2].set_title("tumour − normal", fontsize=11)
    figure.colorbar(image, ax=panels[2], label="grey levels of 255", shrink=0.85)
    for axes in panels:
        draw_centre(axes)
        axes.set_axis_off()
    return figure


def stain(packed: Packed, findings: Findings, *, seed: int) -> Figure:
    """Haematoxylin against eosin, a point per patch that isn't blank, by class and by slide."""
    tissue = findings.tissue
    stains, of_class = findings.stains[tissue], packed.labels[tissue]
    units, unit = packed.train["slide"].iloc[tissue], "slide"
    if packed.split_report["group_by"] == "stain":
        units, unit = packed.groups.iloc[tissue], "stain cluster"
    known = units.notna().to_numpy(dtype=bool)
    shown = np.sort(np.random.default_rng(seed).permutation(len(tissue))[:_SCATTER_PATCHES])
    aurocs = [ranked_above(stains[:, position], of_class) for position in range(2)]
    best = int(np.argmax(np.abs(np.array(aurocs) - 0.5)))
    by_class = (
        f"mean {('haematoxylin', 'eosin')[best]} alone tells tumour from normal with AUROC "
        f"{aurocs[best]:.2f}"
    )
    title, subtitle = by_class[0].upper() + by_class[1:], "0.5 is chance"
    if known.any():
        shares = [share_explained(stains[known, position], units[known]) for position in range(2)]
        title = (
            f"The {unit} explains {percent(shares[0])} of the spread in haematoxylin, "
            f"{percent(shares[1])} in eosin"
        )
        subtitle = f"{by_class} (0.5 is chance)"
    subtitle += f"; {len(shown):,} of {len(tissue):,} patches drawn, blank ones left out"
    if unit != "slide":
        subtitle += f"\na {unit} stands in for a slide"
    figure = titled_figure(title, subtitle, size=(11.5, 5.4) if known.any() else (7.5, 5.8))
    panels = figure.subplots(1, 2 if known.any() else 1, squeeze=False, sharey=True)[0]
    # in the order of ids, so that neither class hides the other
    colours = np.array(patch.CLASS_COLOURS)[of_class[shown]]
    panels[0].scatter(*stains[shown].T, c=colours, s=7, alpha=0.45, linewidths=0)
    for label, colour in enumerate(patch.CLASS_COLOURS):
        panels[0].scatter([], [], c=colour, s=30, label=patch.CLASSES[label])
    panels[0].set_title("by class", fontsize=11)
    panels[0].set_ylabel("eosin, mean optical density")
    if known.any():
        means = pd.DataFrame(stains).groupby(units.to_numpy(dtype=object)).mean()
        panels[1].scatter(*stains[shown].T, color="#BBBBBB", s=7, linewidths=0, label="patches")
        panels[1].scatter(
            means[0],
            means[1],
            color=patch.GREEN,
            s=60,
            edgecolors="black",
            label=f"mean of a {unit}",
        )
        panels[1].set_title(f"by {unit} ({len(means):,})", fontsize=11)
    for axes in panels:
        axes.set_xlabel("haematoxylin, mean optical density")
        axes.legend(frameon=False, loc="best")
        bare(axes)
    return figure


def slides(packed: Packed) -> Figure:
    """Stacked bars of patches by slide and class; patches of unknown slide are left out."""
    names = packed.train["slide"]
    counts = pd.crosstab(names.to_numpy(dtype=object), packed.labels)
    counts = counts.reindex(columns=[0, 1], fill_value=0)
    total = counts.sum(axis=1)
    counts = counts.loc[total.sort_values(ascending=False, kind="stable").index]
    n_both = int((counts > 0).all(axis=1).sum())
    only = [int((counts[1 - label] == 0).sum()) for label in range(2)]
    figure = titled_figure(
        f"{len(counts):,} slides: {n_both:,} hold both classes, {only[0]:,} only normal, "
        f"{only[1]:,} only tumour patches",
        f"{total.min():,} to {total.max():,} patches per slide, median {total.median():,.0f}; "
        f"{counted(int(names.isna().sum()), 'patch')} of unknown slide",
        size=(10.5, 4.6),
    )
    axes = figure.subplots()
    position = np.arange(len(counts))
    width = 0.85 if len(counts) <= _NAMED_SLIDES else 1.0
    below = np.zeros(len(counts))
    for label, colour in enumerate(patch.CLASS_COLOURS):
        name = patch.CLASSES[label]
        axes.bar(position, counts[label], width, bottom=below, color=colour, label=name)
        below += counts[label].to_numpy()
    if len(counts) <= _NAMED_SLIDES:
        short = [n if len(n) <= 18 else f"{n[:8]}…{n[-8:]}" for n in map(str, counts.index)]
        axes.set_xticks(position, short, rotation=90)
    else:
        axes.set_xlabel("slides, largest first")
    axes.set_ylabel("labelled patches")
    axes.margins(x=0.01)
    axes.legend(frameon=False)
    bare(axes)
    return figure


def splits(packed: Packed, findings: Findings) -> Figure:
    """Tumour fraction and colours of the three splits."""
    described, shift = findings.comparison["splits"], findings.comparison["largest_shift"]
    by = f"{shift['standardised']:+.2f} sd".replace("-", "−")
    title = f"Val and holdout look like train: no colour is shifted by more than {LARGE_SHIFT} sd"
    if shift["large"]:
        split = shift["split"].capitalize()
        title = f"{split} looks unlike train: its {shift['feature']} is shifted by {by}"
    figure = titled_figure(
        title,
        f"largest shift {by} ({shift['feature']}, {shift['split']}); "
        f"groups are {packed.split_report['groups_are']}",
        size=(13.5, 4.2),
    )
    balance, *panels = figure.subplots(1, 1 + len(FEATURES))
    fractions = np.array([described[name]["tumour_fraction"] for name in patch.SPLITS])
    normal, tumour = patch.CLASS_COLOURS
    balance.barh(patch.SPLITS, fractions, color=tumour, label="tumour")
    balance.barh(patch.SPLITS, 1 - fractions, left=fractions, color=normal, label="normal")
    sizes = [
        f"{name}\n{counted(described[name]['n_patches'], 'patch')}\n"
        f"{counted(described[name]['n_groups'], 'group')}"
        for name in patch.SPLITS
    ]
    balance.set_yticks(range(len(sizes)), sizes)
    for position, fraction in enumerate(fractions):
        balance.annotate(
            percent(fraction),
            (1, position),
            (4, 0),
            textcoords="offset points",
            va="center",
            color=tumour,
        )
    balance.invert_yaxis()
    balance.set_xlim(0, 1)
    balance.set_title("share of tumour", fontsize=10)
    balance.legend(frameon=False, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.08))
    bare(balance)
    for axes, feature in zip(panels, FEATURES, strict=True):
        # box from quartile to quartile, line at the median, whiskers at 5 and 95 %
        boxes = [
            dict(zip(("whislo", "q1", "med", "q3", "whishi"), row, strict=True))
            for row in (described[name]["percentiles"][feature] for name in patch.SPLITS)
        ]
        drawn = axes.bxp(
            boxes, showfliers=False, patch_artist=True, widths=0.55, medianprops={"color": "black"}
        )
        for box, colour in zip(drawn["boxes"], patch.SPLIT_COLOURS, strict=True):
            box.set_facecolor(colour)
        axes.set_xticks(range(1, len(patch.SPLITS) + 1), patch.SPLITS)
        axes.set_title(FEATURES[feature], fontsize=10)
        bare(axes)
    return figure


def blank(packed: Packed, findings: Findings) -> Figure:
    """The whitest patches above the blackest, flagged ones first."""
    brightness = findings.survey.brightness
    white = has_flag(packed.train["flags"], BLANK_WHITE)
    black = has_flag(packed.train["flags"], BLANK_BLACK)
    k = min(_GALLERY_PATCHES, len(white)) // 2
    rows = np.concatenate(
        [np.lexsort((-brightness, ~white))[:k], np.lexsort((brightness, ~black))[:k]]
    )
    flagged = white | black
    n_white, n_black = int(white.sum()), int(black.sum())
    return gallery(
        packed.pixels["train"][rows],
        captions=[f"{brightness[row]:.0f}{' flagged' if flagged[row] else ''}" for row in rows],
        title=f"{n_white:,} blank white and {n_black:,} blank black patches are flagged",
        subtitle=f"upper row {shown_of(n_white, k)} white, lower row {shown_of(n_black, k)} black, "
        "then the brightest and darkest others; number: mean grey level",
        columns=k,
    )


def blurred(packed: Packed, findings: Findings) -> Figure:
    """The patches of lowest Laplacian variance, blurriest first."""
    sharpness, tissue = findings.survey.sharpness, findings.tissue
    rows = tissue[np.argsort(sharpness[tissue], kind="stable")][:_GALLERY_PATCHES]
    of_median = 100 * sharpness / max(float(np.median(sharpness)), 1e-9)
    n_blurred = int(findings.blurred.sum())
    return gallery(
        packed.pixels["train"][rows],
        captions=[f"{of_median[row]:.2g}" for row in rows],
        title=f"{n_blurred:,} of {len(sharpness):,} patches are blurred or nearly empty "
        f"(sharpness under {100 * BLURRED_SHARE_OF_MEDIAN:g} % of the median)",
        subtitle=f"{shown_of(n_blurred, len(rows))}, blurriest first, without those flagged "
        "blank; number: variance of the Laplacian as % of the median",
        columns=8,
    )


def duplicates(packed: Packed, findings: Findings) -> Figure:
    """The first patch of each set of identical ones."""
    sets = findings.duplicates[:_SETS_SHOWN]
    captions = []
    for rows in sets:
        kinds = [patch.CLASSES[label] for label in rows["label"].dropna().unique()]
        kind = " and ".join(kinds) or "no label"
        captions.append(f"{rows['id'].iloc[0][:8]}… × {len(rows)}\n{kind}")
    counts = count_sets(findings.duplicates)
    return gallery(
        _pixels_of(packed, [rows.iloc[0] for rows in sets]),
        captions=captions,
        title=f"{counted(counts['n_sets'], 'set')} of patches with identical pixels; "
        f"{counts['n_conflicts']:,} with contradicting labels",
        subtitle=f"one patch per set, {shown_of(counts['n_sets'], len(sets))}; "
        f"{counted(counts['n_across'], 'set')} in both train and test",
        columns=6,
    )


def near_duplicates(packed: Packed, findings: Findings) -> Figure:
    """Two patches of each set of near-duplicates, side by side."""
    sets = findings.near_duplicates[:_SETS_SHOWN]
    shown = [row for rows in sets for _, row in rows.iloc[:2].iterrows()]
    kinds = ["no label" if pd.isna(r["label"]) else patch.CLASSES[int(r["label"])] for r in shown]
    counts = count_sets(findings.near_duplicates)
    return gallery(
        _pixels_of(packed, shown),
        captions=[f"{r['id'][:8]}…\n{kind}" for r, kind in zip(shown, kinds, strict=True)],
        title=f"{counted(counts['n_sets'], 'set')} of nearly identical patches; "
        f"{counts['n_conflicts']:,} with contradicting labels",
        subtitle=f"two patches per set, {shown_of(counts['n_sets'], len(sets))}, identical pixels "
        "left out; a set never crosses splits",
        columns=6,
    )


def _pixels_of(packed: Packed, rows: list[pd.Series]) -> NDArray[np.uint8]:
    return np.stack([packed.pixels[row["subset"]][row["row"]] for row in rows])
