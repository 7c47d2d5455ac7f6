"""Pictures of a study, drawn from its table of trials (``table.trials_table``) alone."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from src.params import Choice, LogRange, TuneParams
from src.tuning.table import best_row, best_so_far, shown, sign_of

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

DEPTH, RATE = "finetune.depth", "finetune.learning_rate"

_BLUE, _ORANGE, _GREY = "#0072B2", "#D55E00", "0.7"
_DPI = 110


def of_study(
    table: "pd.DataFrame", tune: TuneParams, importances: Mapping[str, float]
) -> "dict[str, Figure]":
    """Every picture by name; those that these trials can't fill are left out."""
    if table[table["state"] == "complete"].empty:
        return {}
    found = {
        "history": history(table, tune),
        "slices": slices(table, tune),
        "parallel_coordinates": parallel_coordinates(table, tune),
    }
    if importances:
        found["importances"] = importance_bars(importances)
    if has_map(tune):
        found["depth_rate_map"] = depth_rate_map(table, tune)
    return found


def has_map(tune: TuneParams) -> bool:
    """Whether the space has both axes of the map."""
    return DEPTH in tune.space and RATE in tune.space


def history(table: "pd.DataFrame", tune: TuneParams) -> "Figure":
    """Score of each trial, and the best so far."""
    figure, axes = _figure(6.5, 3.5)
    for state, colour, marker in (("complete", _BLUE, "o"), ("pruned", _GREY, "x")):
        rows = table[table["state"] == state]
        axes.scatter(rows["trial"], rows["value"], color=colour, marker=marker, label=state)
    best = best_so_far(table, objective=tune.objective)
    axes.step(table["trial"], best, where="post", color=_ORANGE, label="best so far")
    axes.set_xlabel("trial")
    axes.set_ylabel(tune.objective)
    axes.legend()
    return figure


def importance_bars(importances: Mapping[str, float]) -> "Figure":
    """Share of the scores' variance that each parameter explains (functional ANOVA)."""
    names = list(importances)[::-1]
    figure, axes = _figure(6.5, 1 + 0.4 * len(names))
    axes.barh(names, [importances[name] for name in names], color=_BLUE)
    axes.set_xlabel("share of the variance explained (few trials: a hint)")
    axes.set_xlim(0, 1)
    return figure


def slices(table: "pd.DataFrame", tune: TuneParams) -> "Figure":
    """Score over each parameter by itself; the best trial is marked."""
    from matplotlib.figure import Figure

    n = len(tune.space)
    figure = Figure(figsize=(3.2 * n, 3.4), dpi=_DPI, layout="constrained")
    complete = table[table["state"] == "complete"]
    best = best_row(table, objective=tune.objective)
    for i, name in enumerate(tune.space):
        axes = figure.add_subplot(1, n, i + 1)
        axes.scatter(positions(complete[name], tune, name), complete["value"], color=_BLUE)
        if best is not None:
            axes.scatter(
                positions(complete.loc[[best.name]][name], tune, name),
                [best["value"]],
                s=140,
                facecolors="none",
                edgecolors=_ORANGE,
                linewidths=2,
            )
        _scale(axes, tune, name)
        axes.set_xlabel(name)
        if i == 0:
            axes.set_ylabel(tune.objective)
    return figure


def parallel_coordinates(table: "pd.DataFrame", tune: TuneParams) -> "Figure":
    """One line a complete trial across all parameters; darker is better, the best is orange."""
    import matplotlib
    import numpy as np

    complete = table[table["state"] == "complete"]
    names = list(tune.space)
    figure, axes = _figure(1.8 * (len(names) + 1), 4)
    columns = [_unit(positions(complete[name], tune, name), tune, name) for name in names]
    values = complete["value"].to_numpy(float)
    columns.append(_spread(values))
    goodness = _spread(sign_of(tune.objective) * values)
    colours = matplotlib.colormaps["Blues"](0.25 + 0.75 * goodness)
    best = best_row(table, objective=tune.objective)
    for row, (label, points) in enumerate(
        zip(complete.index, np.column_stack(columns), strict=True)
    ):
        is_best = best is not None and label == best.name
        colour = _ORANGE if is_best else colours[row]
        axes.plot(points, color=colour, linewidth=2.5 if is_best else 1.2, zorder=2 + is_best)
    for x, name in enumerate(names):
        _ticks_beside(axes, x, tune, name)
    for y, value in ((0.0, values.min()), (1.0, values.max())):
        axes.text(len(names) + 0.03, y, f"{value:.4f}", va="center", fontsize=8)
    axes.set_xticks(range(len(names) + 1), [*names, tune.objective], fontsize=8)
    axes.set_yticks([])
    axes.set_xlim(-0.1, len(names) + 0.35)
    return figure


def depth_rate_map(table: "pd.DataFrame", tune: TuneParams) -> "Figure":
    """Score by unfreeze depth and fine-tune rate; pruned trials are crosses, the best is a star."""
    figure, axes = _figure(6.5, 4)
    complete, pruned = (table[table["state"] == state] for state in ("complete", "pruned"))
    axes.scatter(
        positions(pruned[DEPTH], tune, DEPTH),
        positions(pruned[RATE], tune, RATE),
        marker="x",
        color=_GREY,
        label="pruned",
    )
    points = axes.scatter(
        positions(complete[DEPTH], tune, DEPTH),
        positions(complete[RATE], tune, RATE),
        c=complete["value"].astype(float),
        cmap="viridis" if tune.objective == "val_auroc" else "viridis_r",
        s=90,
    )
    best = best_row(table, objective=tune.objective)
    if best is not None:
        rows = complete.loc[[best.name]]
        axes.scatter(
            positions(rows[DEPTH], tune, DEPTH),
            positions(rows[RATE], tune, RATE),
            marker="*",
            s=420,
            facecolors="none",
            edgecolors=_ORANGE,
            linewidths=2,
            label=f"best: trial {best['trial']}, {best['value']:.4f}",
        )
    figure.colorbar(points, ax=axes, label=tune.objective)
    _scale(axes, tune, DEPTH)
    _scale(axes, tune, RATE, axis="y")
    axes.set_xlabel("unfreeze depth (residual blocks from the top)")
    axes.set_ylabel("fine-tune learning rate")
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncol=2,
        frameon=False,
        fontsize=8,
        markerscale=0.5,
    )
    return figure


def positions(column: "pd.Series", tune: TuneParams, name: str) -> "NDArray[np.float64]":
    """Where values stand on an axis: numbers as they are, choices by their place in the list."""
    import numpy as np

    dimension = tune.space[name]
    if isinstance(dimension, Choice):
        places: list[Any] = list(dimension.choice)
        return np.array([places.index(value) for value in column], float)
    return column.to_numpy(float)


def _unit(values: "NDArray[np.float64]", tune: TuneParams, name: str) -> "NDArray[np.float64]":
    """Positions as shares of the dimension's extent, 0 … 1."""
    import numpy as np

    dimension = tune.space[name]
    if isinstance(dimension, Choice):
        return values / max(1, len(dimension.choice) - 1)
    low, high = map(float, dimension.ends)  # type: ignore[arg-type]  # a range's ends are numbers
    if isinstance(dimension, LogRange):
        low, high, values = np.log(low), np.log(high), np.log(values)
    return (values - low) / (high - low)


def _spread(values: "NDArray[np.float64]") -> "NDArray[np.float64]":
    extent = values.max() - values.min()
    return (values - values.min()) / extent if extent > 0 else values * 0 + 0.5


def _ticks_beside(axes: "Axes", x: int, tune: TuneParams, name: str) -> None:
    dimension = tune.space[name]
    axes.axvline(x, color="0.8", zorder=1)
    ends = dimension.ends
    for i, value in enumerate(ends):
        y = i / max(1, len(ends) - 1)
        axes.text(x + 0.03, y, shown(value), va="center", fontsize=8, zorder=4)


def _scale(axes: "Axes", tune: TuneParams, name: str, *, axis: str = "x") -> None:
    dimension = tune.space[name]
    is_x = axis == "x"
    if isinstance(dimension, LogRange):
        (axes.set_xscale if is_x else axes.set_yscale)("log")
    elif isinstance(dimension, Choice):
        labels = [shown(value) for value in dimension.choice]
        (axes.set_xticks if is_x else axes.set_yticks)(range(len(labels)), labels)


def _figure(width: float, height: float) -> "tuple[Figure, Axes]":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained")
    return figure, figure.add_subplot()
