"""What the pictures of ``explore`` share: titled figures, number formats, the centre square."""

from typing import TYPE_CHECKING

from matplotlib.figure import Figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DPI = 110
CLASS_COLOURS = ("#0072B2", "#D55E00")
CENTRE_PX = 32

_GREY = "#555555"


def titled_figure(title: str, subtitle: str, *, size: tuple[float, float]) -> Figure:
    """An empty figure of ``size`` inches under a bold title and a grey line of explanation."""
    figure = Figure(figsize=size, dpi=DPI, layout="constrained")
    width, height = size
    # the title band: constrained layout leaves it free
    band = (0.62 + 0.17 * subtitle.count("\n")) / height
    figure.get_layout_engine().set(rect=(0, 0, 1, 1 - band))  # type: ignore[union-attr, call-arg]
    figure.text(0.12 / width, 1 - 0.10 / height, title, fontsize=13, weight="bold", va="top")
    figure.text(0.12 / width, 1 - 0.36 / height, subtitle, fontsize=9.5, color=_GREY, va="top")
    return figure


def bare(axes: "Axes") -> None:
    """Take away the frame's upper and right lines."""
    axes.spines[["top", "right"]].set_visible(False)


def percent(share: float) -> str:
    """0.405 → ``40.5 %``."""
    return f"{share * 100:.1f} %"


def counted(n: int, noun: str) -> str:
    """2, set → ``2 sets``; 2, patch → ``2 patches``."""
    ending = "es" if noun.endswith("ch") else "s"
    return f"{n:,} {noun}{'' if n == 1 else ending}"


def signed(value: float) -> str:
    """With its sign and one decimal."""
    return f"{value:+.1f}".replace("-", "−")


def shorten(name: str) -> str:
    """Cut the middle out of a long name."""
    return name if len(name) <= 18 else name[:8] + "…" + name[-8:]


def draw_centre(axes: "Axes", *, side: int, top: int = 0, left: int = 0) -> None:
    """The square that the label is about, of a patch of ``side`` px drawn at (top, left)."""
    from matplotlib.patches import Rectangle

    start = (side - CENTRE_PX) / 2 - 0.5
    # a light line inside a dark one shows on any tissue
    for colour, width in (("black", 2.4), ("white", 1.0)):
        axes.add_patch(
            Rectangle(
                (left + start, top + start),
                CENTRE_PX,
                CENTRE_PX,
                fill=False,
                edgecolor=colour,
                lw=width,
            )
        )
