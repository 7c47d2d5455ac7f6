"""Galleries: patches side by side, as a person would lay them out to compare them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from src.data.figure_parts import CENTRE_PX, counted, draw_centre, titled_figure
from src.data.terms import CLASSES

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def sample_grid(patches: NDArray[np.uint8], *, label: int, n_of_label: int) -> Figure:
    """Random patches (k, 96, 96, 3) of one class, the labelled centre drawn in."""
    meaning = ("no tumour inside the square", "tumour inside the square")[label]
    return _gallery(
        patches,
        captions=None,
        title=f"{CLASSES[label].capitalize()} means {meaning}, whatever lies around it",
        subtitle=f"{len(patches)} of {n_of_label:,} {CLASSES[label]} patches, drawn at random; "
        f"the square is the centre {CENTRE_PX} × {CENTRE_PX} px",
        columns=8 if len(patches) <= 32 else 10,
        centre=True,
    )


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
        subtitle=f"upper row {_shown(n_white, len(whitest))} white, lower row "
        f"{_shown(n_black, len(blackest))} black, then the brightest and darkest others; "
        "number: mean grey level",
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
        title=f"{n_blurred:,} of {n:,} patches are blurred or nearly empty "
        f"(sharpness under {share_of_median * 100:g} % of the median)",
        subtitle=f"{_shown(n_blurred, len(patches))}, blurriest first, without those flagged "
        "blank; number: variance of the Laplacian as % of the median",
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
        title=f"{counted(n_sets, 'set')} of patches with identical pixels; "
        f"{n_conflicts:,} with contradicting labels",
        subtitle=f"one patch a set, {_shown(n_sets, len(patches))}; "
        f"{counted(n_across, 'set')} in both train and test",
        columns=6,
    )


def near_duplicate_gallery(
    patches: NDArray[np.uint8], *, captions: Sequence[str], n_sets: int, n_conflicts: int
) -> Figure:
    """Two patches of each set of near-duplicates, side by side: (2k, 96, 96, 3)."""
    return _gallery(
        patches,
        captions=captions,
        title=f"{counted(n_sets, 'set')} of nearly identical patches; "
        f"{n_conflicts:,} with contradicting labels",
        subtitle=f"two patches a set, {_shown(n_sets, len(patches) // 2)}, identical pixels left "
        "out; a set never crosses splits",
        columns=6,
    )


def _shown(n: int, n_shown: int) -> str:
    """``all 3`` or ``8 of 11``."""
    return f"all {n:,}" if n <= n_shown else f"{n_shown:,} of {n:,}"


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
    figure = titled_figure(
        title, subtitle, size=(max(width * scale_in, 9), height * scale_in + 0.75)
    )
    axes = figure.subplots()
    axes.imshow(mosaic, interpolation="nearest")
    axes.set_axis_off()
    axes.set_anchor("W")
    for position, (top, left) in enumerate(corners):
        _draw_frame(axes, shape=patches.shape[1:3], top=top, left=left)
        if centre:
            draw_centre(axes, side=patches.shape[1], top=top, left=left)
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
