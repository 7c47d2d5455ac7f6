"""The pictures every training run carries, drawn from ``fit.json`` alone."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BLUE = "#0072B2"
_DPI = 110


def of_fit(fit: Mapping[str, Any]) -> "dict[str, Figure]":
    """``lr_schedule``: the rate of each epoch; also of a restored run."""
    return {"lr_schedule": _lr_schedule(fit)}


def _lr_schedule(fit: Mapping[str, Any]) -> "Figure":
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    epochs = [row["epoch"] for row in fit["history"]]
    rates = [row["learning_rate"] for row in fit["history"]]
    figure = Figure(figsize=(6, 3.5), dpi=_DPI, layout="constrained")
    axes = figure.add_subplot()
    axes.plot(epochs, rates, color=_BLUE, marker="o", markersize=4)
    axes.axvline(fit["best_epoch"], color="0.6", linestyle="--", label="best epoch")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("epoch")
    axes.set_ylabel("learning rate")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_title(_title(fit, rates))
    axes.legend()
    return figure


def _title(fit: Mapping[str, Any], rates: list[float]) -> str:
    name = fit["schedule"].get("name", "schedule")
    return f"{name}: learning rate {max(rates):.2g} at most, {rates[-1]:.2g} in the last epoch"
