"""The same pictures for the browser, in one HTML file that works without network."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from src.params import Choice, LogRange, TuneParams
from src.tuning.pictures import DEPTH, RATE, has_map, positions
from src.tuning.table import best_row, best_so_far, shown

if TYPE_CHECKING:
    import pandas as pd
    from plotly.graph_objects import Figure

_HEAD = """<!doctype html><html lang="en"><head><meta charset="utf-8">
<title>Study {study}</title><style>body{{font-family:sans-serif;max-width:70rem;margin:auto}}
</style></head><body><h1>Study {study}</h1>"""


def page(
    table: "pd.DataFrame", tune: TuneParams, importances: Mapping[str, float], *, study: str
) -> str:
    """An HTML page with all pictures; plotly's script is inside, once."""
    from html import escape

    parts = [_HEAD.format(study=escape(study))]
    for title, figure in figures(table, tune, importances).items():
        figure.update_layout(title=title, template="plotly_white", height=480)
        parts.append(
            figure.to_html(
                full_html=False, include_plotlyjs=len(parts) == 1, config={"displaylogo": False}
            )
        )
    if len(parts) == 1:
        parts.append("<p>No trial is complete, so there is nothing to show.</p>")
    return "\n".join([*parts, "</body></html>"])


def figures(
    table: "pd.DataFrame", tune: TuneParams, importances: Mapping[str, float]
) -> "dict[str, Figure]":
    """By title; those that these trials can't fill are left out."""
    if table[table["state"] == "complete"].empty:
        return {}
    found = {"History": _history(table, tune)}
    if has_map(tune):
        found["Depth and rate"] = _map(table, tune)
    found["Parallel coordinates"] = _parallel(table, tune)
    found["Slices"] = _slices(table, tune)
    if importances:
        found["Importances"] = _importances(importances)
    return found


def _hover(rows: "pd.DataFrame", tune: TuneParams) -> list[str]:
    return [
        "<br>".join(
            [f"trial {row['trial']}", *(f"{name} {shown(row[name])}" for name in tune.space)]
        )
        for _, row in rows.iterrows()
    ]


def _history(table: "pd.DataFrame", tune: TuneParams) -> "Figure":
    from plotly import graph_objects as go

    figure = go.Figure()
    for state, symbol in (("complete", "circle"), ("pruned", "x")):
        rows = table[table["state"] == state]
        figure.add_scatter(
            x=rows["trial"].tolist(),
            y=rows["value"].tolist(),
            mode="markers",
            marker_symbol=symbol,
            name=state,
            text=_hover(rows, tune),
        )
    best = best_so_far(table, objective=tune.objective)
    known = best.notna()
    figure.add_scatter(
        x=table.loc[known, "trial"].tolist(),
        y=best[known].tolist(),
        mode="lines",
        line_shape="hv",
        name="best so far",
    )
    return figure.update_layout(xaxis_title="trial", yaxis_title=tune.objective)


def _importances(importances: Mapping[str, float]) -> "Figure":
    from plotly import graph_objects as go

    names = list(importances)[::-1]
    bars = go.Bar(x=[importances[name] for name in names], y=names, orientation="h")
    return go.Figure(bars).update_layout(xaxis_title="share of the variance explained")


def _slices(table: "pd.DataFrame", tune: TuneParams) -> "Figure":
    from plotly.subplots import make_subplots

    complete = table[table["state"] == "complete"]
    figure = make_subplots(cols=len(tune.space), shared_yaxes=True)
    for column, name in enumerate(tune.space, start=1):
        figure.add_scatter(
            x=positions(complete[name], tune, name).tolist(),
            y=complete["value"].tolist(),
            mode="markers",
            text=_hover(complete, tune),
            showlegend=False,
            row=1,
            col=column,
        )
        figure.update_xaxes(title=name, **_axis(tune, name), row=1, col=column)
    return figure.update_yaxes(title=tune.objective, col=1)


def _parallel(table: "pd.DataFrame", tune: TuneParams) -> "Figure":
    import numpy as np
    from plotly import graph_objects as go

    complete = table[table["state"] == "complete"]
    dimensions = []
    for name, dimension in tune.space.items():
        at = positions(complete[name], tune, name)
        axis: dict[str, Any] = {"label": name}
        if isinstance(dimension, LogRange):
            ends = np.log10(np.array(dimension.log))
            at = np.log10(at)
            ticks = np.linspace(ends[0], ends[1], 4)
            axis |= {"range": ends.tolist(), "tickvals": ticks.tolist()}
            axis["ticktext"] = [shown(float(10**tick)) for tick in ticks]
        elif isinstance(dimension, Choice):
            axis["tickvals"] = list(range(len(dimension.choice)))
            axis["ticktext"] = [shown(value) for value in dimension.choice]
        dimensions.append({**axis, "values": at.tolist()})
    values = complete["value"].tolist()
    dimensions.append({"label": tune.objective, "values": values})
    line = {"color": values, "colorscale": "Viridis", "showscale": True}
    line["reversescale"] = tune.objective == "val_loss"
    return go.Figure(go.Parcoords(line=line, dimensions=dimensions))


def _map(table: "pd.DataFrame", tune: TuneParams) -> "Figure":
    from plotly import graph_objects as go

    complete, pruned = (table[table["state"] == state] for state in ("complete", "pruned"))
    figure = go.Figure()
    figure.add_scatter(
        x=positions(pruned[DEPTH], tune, DEPTH).tolist(),
        y=positions(pruned[RATE], tune, RATE).tolist(),
        mode="markers",
        marker={"symbol": "x", "color": "grey"},
        name="pruned",
        text=_hover(pruned, tune),
    )
    colours = {"color": complete["value"].tolist(), "showscale": True, "colorscale": "Viridis"}
    figure.add_scatter(
        x=positions(complete[DEPTH], tune, DEPTH).tolist(),
        y=positions(complete[RATE], tune, RATE).tolist(),
        mode="markers",
        marker={**colours, "size": 13, "reversescale": tune.objective == "val_loss"},
        name="complete",
        text=_hover(complete, tune),
    )
    best = best_row(table, objective=tune.objective)
    if best is not None:
        rows = complete.loc[[best.name]]
        figure.add_scatter(
            x=positions(rows[DEPTH], tune, DEPTH).tolist(),
            y=positions(rows[RATE], tune, RATE).tolist(),
            mode="markers",
            marker={"symbol": "star-open", "size": 24, "color": "#D55E00", "line_width": 2},
            name="best",
            text=_hover(rows, tune),
        )
    figure.update_layout(legend={"orientation": "h"})
    figure.update_xaxes(title="unfreeze depth", **_axis(tune, DEPTH))
    return figure.update_yaxes(title="fine-tune learning rate", **_axis(tune, RATE))


def _axis(tune: TuneParams, name: str) -> dict[str, Any]:
    dimension = tune.space[name]
    if isinstance(dimension, LogRange):
        return {"type": "log"}
    if isinstance(dimension, Choice):
        labels = [shown(value) for value in dimension.choice]
        return {"tickvals": list(range(len(labels))), "ticktext": labels}
    return {}
