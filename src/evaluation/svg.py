"""Line charts as inline SVG: they scale, print, and take their colours from the style sheet."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

import numpy as np

WIDTH, HEIGHT = 380, 300
_MAX_LOG_TICKS = 6
LEFT, RIGHT, TOP, BOTTOM = 62, 12, 12, 44


@dataclass
class Chart:
    """A chart that is drawn into; ``x`` and ``y`` are the ranges of its axes.

    ``label`` says in words what the picture shows, for those who can't see it. What is drawn gets
    a CSS class; ``log_y`` takes a logarithmic axis.
    """

    x: tuple[float, float]
    y: tuple[float, float]
    x_label: str
    y_label: str
    label: str
    log_y: bool = False
    name: str = ""
    whole_x: bool = False
    _drawn: list[str] = field(default_factory=list)

    def line(self, xs: Any, ys: Any, css: str) -> None:
        """A line; NaN interrupts it."""
        for piece in _pieces(xs, ys):
            points = " ".join(f"{self._px(x)},{self._py(y)}" for x, y in piece)
            self._drawn.append(f'<polyline class="line {css}" points="{points}"/>')

    def band(self, xs: Any, low: Any, high: Any, css: str) -> None:
        """The area between two lines; places where either is NaN are left out."""
        kept = [
            (x, a, b) for x, a, b in zip(xs, low, high, strict=True) if np.isfinite((a, b)).all()
        ]
        if kept:
            there = [f"{self._px(x)},{self._py(b)}" for x, _, b in kept]
            back = [f"{self._px(x)},{self._py(a)}" for x, a, _ in reversed(kept)]
            self._drawn.append(f'<polygon class="band {css}" points="{" ".join(there + back)}"/>')

    def points(self, xs: Any, ys: Any, css: str, radius: float = 3) -> None:
        """A dot a point."""
        for x, y in zip(xs, ys, strict=True):
            self._drawn.append(
                f'<circle class="dot {css}" cx="{self._px(x)}" cy="{self._py(y)}" r="{radius}"/>'
            )

    def bars(self, xs: Any, low: Any, high: Any, css: str) -> None:
        """A vertical bar from low to high at each x, NaN left out."""
        for x, a, b in zip(xs, low, high, strict=True):
            if np.isfinite((a, b)).all():
                self._drawn.append(
                    f'<line class="line {css}" x1="{self._px(x)}" x2="{self._px(x)}" '
                    f'y1="{self._py(a)}" y2="{self._py(b)}"/>'
                )

    def marker(self, x: float, y: float) -> None:
        """The operating point, which the slider moves."""
        self._drawn.append(f'<circle class="marker" cx="{self._px(x)}" cy="{self._py(y)}" r="6"/>')

    def vertical(self, x: float, css: str) -> None:
        """A vertical line over the whole height."""
        self._drawn.append(
            f'<line class="line {css}" x1="{self._px(x)}" x2="{self._px(x)}" '
            f'y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>'
        )

    def render(self) -> str:
        """The ``<svg>`` element."""
        named = f' id="{escape(self.name)}"' if self.name else ""
        return (
            f'<svg{named} class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
            f'aria-label="{escape(self.label)}">{self._axes()}{"".join(self._drawn)}</svg>'
        )

    def _axes(self) -> str:
        left, right, top, bottom = LEFT, WIDTH - RIGHT, TOP, HEIGHT - BOTTOM
        parts = []
        for tick in self._ticks(self.x, whole=self.whole_x):
            at = self._px(tick)
            parts.append(f'<line class="grid" x1="{at}" x2="{at}" y1="{top}" y2="{bottom}"/>')
            parts.append(f'<text x="{at}" y="{bottom + 15}" text-anchor="middle">{tick:g}</text>')
        for tick in self._y_ticks():
            at = self._py(tick)
            parts.append(f'<line class="grid" x1="{left}" x2="{right}" y1="{at}" y2="{at}"/>')
            parts.append(f'<text x="{left - 6}" y="{at + 4}" text-anchor="end">{tick:g}</text>')
        middle = (top + bottom) / 2
        parts.append(
            f'<text x="{(left + right) / 2}" y="{HEIGHT - 6}" text-anchor="middle">'
            f"{escape(self.x_label)}</text>"
            f'<text transform="translate(13 {middle}) rotate(-90)" text-anchor="middle">'
            f"{escape(self.y_label)}</text>"
        )
        return "".join(parts)

    def _y_ticks(self) -> Sequence[float]:
        if not self.log_y:
            return self._ticks(self.y)
        low, high = self.y
        decades = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
        ticks = [factor * 10.0**decade for decade in decades for factor in (1, 2, 5)]
        shown = [tick for tick in ticks if low <= tick <= high]
        return (
            shown
            if len(shown) <= _MAX_LOG_TICKS
            else [10.0**d for d in decades if low <= 10.0**d <= high]
        )

    @staticmethod
    def _ticks(edges: tuple[float, float], *, whole: bool = False) -> Sequence[float]:
        span = edges[1] - edges[0]
        step = 10 ** np.floor(np.log10(span / 4))
        step *= next(factor for factor in (1, 2, 2.5, 5, 10) if span / (step * factor) <= 5.001)
        if whole:
            step = max(1.0, np.ceil(step))
        first = np.ceil(edges[0] / step - 1e-9) * step
        # + 0.0 turns -0 into 0
        return [round(float(t), 10) + 0.0 for t in np.arange(first, edges[1] + step * 1e-6, step)]

    def _px(self, x: float) -> float:
        share = (x - self.x[0]) / (self.x[1] - self.x[0])
        return round(LEFT + share * (WIDTH - LEFT - RIGHT), 2)

    def _py(self, y: float) -> float:
        low, high = self.y
        if self.log_y:
            y, low, high = np.log10(y), np.log10(low), np.log10(high)
        return round(float(HEIGHT - BOTTOM - (y - low) / (high - low) * (HEIGHT - BOTTOM - TOP)), 2)


def _pieces(xs: Any, ys: Any) -> Iterable[list[tuple[float, float]]]:
    piece: list[tuple[float, float]] = []
    for x, y in zip(xs, ys, strict=True):
        if np.isfinite(y):
            piece.append((float(x), float(y)))
        elif piece:
            yield piece
            piece = []
    if piece:
        yield piece
