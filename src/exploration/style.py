"""How the pictures of ``explore`` look: titled figures, number formats, patches side by side."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from src import patch

_DPI = 110
_GAP_PX = 6


def titled_figure(title: str, subtitle: str, *, size: tuple[float, float]) -> Figure:
    """An empty figure of ``size`` inches under a bold title and a grey line of explanation."""
    figure = Figure(figsize=size, dpi=_DPI, layout="constrained")
    width, height = size
    # the title band: constrained layout leaves it free
    band = (0.62 + 0.17 * subtitle.count("\n")) / height
    figure.get_layout_engine().set(rect=(0, 0, 1, 1 - band))  # type: ignore[union-attr, call-arg]
    figure.text(0.12 / width, 1 - 0.10 / height, title, fontsize=13, weight="bold", va="top")
    figure.text(0.12 / width, 1 - 0.36 / height, subtitle, fontsize=9.5, color="#555555", va="top")
    return figure


def bare(axes: Axes) -> None:
    """Take away the frame's upper and right lines."""
    axes.spines[["top", "right"]].set_visible(False)


def percent(share: float) -> str:
    """0.405 → ``40.5 %``."""
    return f"{share * 100:.1f} %"


def counted(n: int, noun: str) -> str:
    """2, set → ``2 sets``; 2, patch → ``2 patches``."""
    ending = "es" if noun.endswith("ch") else "s"
    return f"{n:,} {noun}{'' if n == 1 else ending}"


def shown_of(n: int, n_shown: int) -> str:
    """``all 3`` or ``8 of 11``."""
    return f"all {n:,}" if n <= n_shown else f"{n_shown:,} of {n:,}"


def draw_centre(axes: Axes, *, top: int = 0, left: int = 0) -> None:
    """The square that the label is about, of a patch drawn at (top, left)."""
    start = patch.CENTRE.start - 0.5  # pixel k is drawn from k − 0.5 on
    # a light line inside a dark one shows on any tissue
    for colour, width in (("black", 2.4), ("white", 1.0)):
        square = Rectangle(
            (left + start, top + start), patch.CENTRE_PX, patch.CENTRE_PX, fill=False, lw=width
        )
        square.set_edgecolor(colour)
        axes.add_patch(square)


def gallery(
    patches: NDArray[np.uint8],
    *,
    captions: Sequence[str] | None,
    title: str,
    subtitle: str,
    columns: int,
    centre: bool = False,
) -> Figure:
    """Patches (k, 96, 96, 3) side by side, with a caption above each and perhaps the centre."""
    columns = max(min(columns, len(patches)), 1)
    caption_px = 14 * (captions[0].count("\n") + 1) if captions else 0
    rows = -(-len(patches) // columns)
    # all patches in one white image: an axes for each takes seconds to lay out
    step_y, step_x = patch.SIZE_PX + _GAP_PX + caption_px, patch.SIZE_PX + _GAP_PX
    mosaic = np.full((rows * step_y, columns * step_x, 3), 255, dtype=np.uint8)
    corners = []
    for position, pixels in enumerate(patches):
        top, left = position // columns * step_y + caption_px, position % columns * step_x
        mosaic[top : top + patch.SIZE_PX, left : left + patch.SIZE_PX] = pixels
        corners.append((top, left))
    inches = 1.35 / patch.SIZE_PX
    size = (max(mosaic.shape[1] * inches, 9), mosaic.shape[0] * inches + 0.75)
    figure = titled_figure(title, subtitle, size=size)
    axes = figure.subplots()
    axes.imshow(mosaic, interpolation="nearest")
    axes.set_axis_off()
    axes.set_anchor("W")
    for position, (top, left) in enumerate(corners):
        # a thin line around each: a white patch would vanish on the page
        frame = Rectangle((left - 0.5, top - 0.5), patch.SIZE_PX, patch.SIZE_PX, fill=False, lw=0.5)
        frame.set_edgecolor("#999999")
        axes.add_patch(frame)
        if centre:
            draw_centre(axes, top=top, left=left)
        if captions:
            middle = left + patch.SIZE_PX / 2
            axes.text(middle, top - 2, captions[position], fontsize=8, ha="center", va="bottom")
    return figure
