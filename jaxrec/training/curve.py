"""The picture of a run: its validation metric over rounds and over megabytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxrec.evaluation.names import measured
from jaxrec.files import Row, write_atomic, writing


def write_curve(
    path: Path, curves: Mapping[str, Sequence[Row]], monitor: str, clients: int
) -> None:
    """The monitored validation metric over rounds, and over MB that a client sent and received.

    `curves` maps a method to its rows. A method evaluated once is a dot on a dashed level; one that
    sent nothing is a dashed level over bytes.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 4), layout="constrained")
    FigureCanvasAgg(figure)
    over_rounds, over_bytes = figure.subplots(1, 2, sharey=True)
    names = (name for rows in curves.values() for row in rows for name in row)
    key = measured(f"valid/{monitor}", names) or f"valid/{monitor}"
    for number, (method, rows) in enumerate(curves.items()):
        points = [row for row in rows if row.get(key) is not None]
        values, style = [row[key] for row in points], {"color": f"C{number}", "label": method}
        draw(over_rounds, [row["round"] for row in points], values, style)
        draw(over_bytes, [row["bytes"] / clients / 1e6 for row in points], values, style)
    over_rounds.set(xlabel="round", ylabel=key.replace("/", " "))
    over_bytes.set(xlabel="MB per client, up and down", xscale="log")
    over_bytes.xaxis.set_major_formatter("{x:g}")
    for axes in (over_rounds, over_bytes):
        axes.grid(alpha=0.3)
    if over_rounds.get_legend_handles_labels()[0]:
        over_rounds.legend(frameon=False)
    with writing(path):
        write_atomic(path, lambda beside: figure.savefig(beside, dpi=150, format="png"))


def draw(axes: Any, x: Sequence[float], y: Sequence[float], style: Mapping[str, Any]) -> None:
    """A line, or where there is none to draw the best value as a level, and a dot where x > 0."""
    if len(x) > 1 and x[-1] > 0:
        axes.plot(x, y, **style)
    elif x:
        axes.axhline(max(y), linestyle="--", **style)
        if x[-1] > 0:
            axes.plot(x, y, "o", color=style["color"])
