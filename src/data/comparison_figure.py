"""The picture that shows whether train, val and holdout look alike."""

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

from src.data.figure_parts import CLASS_COLOURS, bare, counted, percent, titled_figure
from src.data.schemas import SPLITS
from src.data.split_comparison import FEATURES, LARGE_SHIFT

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SPLIT_COLOURS = ("#56B4E9", "#CC79A7", "#009E73")  # not those of the classes


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
        size=(13.5, 4.2),
    )
    panels = figure.subplots(1, 1 + len(FEATURES))
    _class_balance(panels[0], comparison["splits"])
    for axes, feature in zip(panels[1:], FEATURES, strict=True):
        _spread(axes, comparison["splits"], feature)
    return figure


def _class_balance(axes: "Axes", splits: dict[str, Any]) -> None:
    fractions = [splits[name]["tumour_fraction"] for name in SPLITS]
    axes.barh(SPLITS, fractions, color=CLASS_COLOURS[1], label="tumour")
    axes.barh(
        SPLITS, 1 - np.array(fractions), left=fractions, color=CLASS_COLOURS[0], label="normal"
    )
    axes.set_yticks(range(len(SPLITS)), [_describe(name, splits[name]) for name in SPLITS])
    for position, fraction in enumerate(fractions):
        axes.annotate(
            percent(fraction),
            (1, position),
            (4, 0),
            textcoords="offset points",
            va="center",
            color=CLASS_COLOURS[1],
        )
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_title("share of tumour", fontsize=10)
    axes.legend(frameon=False, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.08))
    bare(axes)


def _describe(name: str, part: dict[str, Any]) -> str:
    return f"{name}\n{counted(part['n_patches'], 'patch')}\n{counted(part['n_groups'], 'group')}"


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
