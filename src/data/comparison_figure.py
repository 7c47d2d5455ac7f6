"""The picture that shows whether train, val and holdout look alike."""

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

from src.data.figure_parts import CLASS_COLOURS, bare, percent, titled_figure
from src.data.schemas import SPLITS
from src.data.split_comparison import FEATURES, LARGE_SHIFT

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SPLIT_COLOURS = ("#0072B2", "#E69F00", "#009E73")


def split_comparison(comparison: dict[str, Any], *, groups_are: str) -> Figure:
    """Tumour fraction and colours of the three splits, from ``report_comparison``."""
    shift = comparison["largest_shift"]
    verdict = "looks unlike" if shift["large"] else "looks like"
    figure = titled_figure(
        f"{shift['split'].capitalize()} {verdict} train: its {shift['feature']} is shifted by "
        f"{shift['standardised']:+.2f} sd".replace("-", "−")
        if shift["large"]
        else f"Val and holdout look like train: no colour is shifted by more than {LARGE_SHIFT} sd",
        f"largest shift {shift['standardised']:+.2f} sd ({shift['feature']}, {shift['split']}); "
        f"groups are {groups_are}",
        size=(12.5, 4.2),
    )
    panels = figure.subplots(1, 1 + len(FEATURES))
    _class_balance(panels[0], comparison["splits"])
    for axes, feature in zip(panels[1:], FEATURES, strict=True):
        _spread(axes, comparison["splits"], feature)
    return figure


def _class_balance(axes: "Axes", splits: dict[str, Any]) -> None:
    fractions = [splits[name]["tumour_fraction"] for name in SPLITS]
    bars = axes.barh(SPLITS, fractions, color=CLASS_COLOURS[1])
    axes.barh(SPLITS, 1 - np.array(fractions), left=fractions, color=CLASS_COLOURS[0])
    texts = [
        f"{percent(splits[name]['tumour_fraction'])} tumour\n"
        f"{splits[name]['n_patches']:,} patches\n{splits[name]['n_groups']:,} groups"
        for name in SPLITS
    ]
    for bar, text in zip(bars, texts, strict=True):
        middle = bar.get_y() + bar.get_height() / 2
        axes.text(0.03, middle, text, va="center", fontsize=9, color="white", weight="bold")
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_title("share of tumour", fontsize=11)
    bare(axes)


def _spread(axes: "Axes", splits: dict[str, Any], feature: str) -> None:
    """Box from quartile to quartile, line at the median, whiskers at 5 and 95 %."""
    boxes = [
        dict(zip(("whislo", "q1", "med", "q3", "whishi"), row, strict=True))
        for row in (splits[name]["percentiles"][feature] for name in SPLITS)
    ]
    drawn = axes.bxp(
        boxes, showfliers=False, patch_artist=True, widths=0.55, medianprops={"color": "black"}
    )
    for box, colour in zip(drawn["boxes"], _SPLIT_COLOURS, strict=True):
        box.set_facecolor(colour)
    axes.set_xticks(range(1, len(SPLITS) + 1), SPLITS)
    axes.set_title(FEATURES[feature], fontsize=10)
    bare(axes)
