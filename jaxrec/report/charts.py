"""Charts as data, drawn twice: as SVG for a page, and by matplotlib for a paper."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from jaxrec.report.markup import Html, element
from jaxrec.training import curve

LIGHT = ["#2f67b1", "#c2512f", "#1d8462", "#7d55a8", "#a06c12", "#14808f", "#b23d6e", "#66707c"]
DARK = ["#78a9ee", "#ec8a68", "#56bd96", "#b595e0", "#d6a548", "#54bccb", "#e882ab", "#a0aab6"]
WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 400, 256, 42, 28, 216
LETTER, LETTERS = 7, 16  # width of one in a label, and how many are written
GAP = 13  # between two labels
DOTS = 50  # that a line is read at, about

Place = Callable[[Any], Any]


class Line(NamedTuple):
    """A line, or, of a single point, a level that reaches from side to side."""

    name: str
    x: Sequence[float] | np.ndarray
    y: Sequence[float] | np.ndarray
    colour: int
    label: str = ""  # written at its end, unless another line has the same


class Chart(NamedTuple):
    """Lines over common axes."""

    title: str
    x: str  # what the axis measures, and its unit
    y: str
    lines: Sequence[Line]
    log: bool = False  # whether x is on a logarithmic scale, which has no zero


Parts = list[Html | Chart]  # of a page, in the order in which they are shown


def figure(chart: Chart) -> Figure:
    """The chart for a column of a paper."""
    made = Figure(figsize=(4.8, 3.2), layout="constrained")
    FigureCanvasAgg(made)
    axes = made.subplots()
    for line, label in zip(chart.lines, _labels(chart), strict=True):
        style = {"color": LIGHT[line.colour % len(LIGHT)], "label": label or "_nolegend_"}
        curve.draw(axes, list(line.x), list(line.y), style)
    axes.set(xlabel=chart.x, ylabel=chart.y)
    if chart.log:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if any(_labels(chart)):
        axes.legend(frameon=False, fontsize="small")
    return made


def svg(chart: Chart) -> Html:
    """The chart for a page, to be read point by point with a pointer or the arrow keys."""
    lines = [_visible(line, log=chart.log) for line in chart.lines]
    labels = [
        (line, _cut(label)) for line, label in zip(lines, _labels(chart), strict=True) if label
    ]
    right = WIDTH - 12 - LETTER * max((len(label) for _, label in labels), default=0)
    every = lambda axis: np.concatenate([getattr(line, axis) for line in lines])
    x_ticks, across = _axis(every("x"), LEFT, right, snug=True, log=chart.log)
    y_ticks, up = _axis(every("y"), BOTTOM, TOP)
    digits = max(len(f"{tick:.9f}".rstrip("0").partition(".")[2]) for tick in y_ticks)
    ends = _apart([up(line.y[-1]) for line, _ in labels])
    parts = [
        *(_rule(f"{tick:,.{digits}f}", up(tick), right) for tick in y_ticks),
        *(_text(f"{tick:,g}", across(tick), BOTTOM + 16, "middle") for tick in x_ticks),
        _text(chart.y, 0, 14, "start"),
        _text(chart.x, right, HEIGHT - 6, "end"),
        *(_path(line, across, up, right) for line in lines),
        *(_dots(chart, line, across, up) for line in lines),
        *(
            _text(label, right + 7, end + 4, "start", _shade(line))
            for (line, label), end in zip(labels, ends, strict=True)
        ),
    ]
    told = f"{chart.title}: {chart.y} over {chart.x}; the arrow keys go from point to point"
    drawn = element("svg", *parts, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="group", aria_label=told)
    return element("figure", element("figcaption", chart.title), drawn, element("output"))


def _labels(chart: Chart) -> list[str]:
    """The label of each line, empty where an earlier line has it."""
    given = [line.label for line in chart.lines]
    return [label * (label not in given[:number]) for number, label in enumerate(given)]


def _visible(line: Line, *, log: bool) -> Line:
    x, y = np.asarray(line.x, float), np.asarray(line.y, float)
    kept = x > 0 if log and len(x) > 1 else slice(None)
    return line._replace(x=x[kept], y=y[kept])


def _shade(line: Line) -> str:
    return f"c{line.colour % len(LIGHT)}"


def _cut(label: str) -> str:
    return label if len(label) <= LETTERS else label[: LETTERS - 1] + "\N{HORIZONTAL ELLIPSIS}"


def _axis(
    every: np.ndarray, start: float, end: float, *, snug: bool = False, log: bool = False
) -> tuple[list[float], Place]:
    """Ticks for all the values, and where a value lies between `start` and `end`."""
    if log:
        every = every[every > 0] if (every > 0).any() else np.ones(1)
        low, high = np.log10(every.min()) - 0.05, np.log10(every.max()) + 0.05
        fine, coarse = (
            [
                part * 10.0**e
                for e in range(-9, 16)
                for part in parts
                if low <= np.log10(part) + e <= high
            ]
            for parts in ((1, 2, 5), (1,))
        )
        ticks = fine if len(fine) <= 6 else coarse
        return ticks, lambda value: start + (np.log10(value) - low) / (high - low) * (end - start)
    low, high = every.min(), every.max()
    if 0 <= low < high / 2 or low == high:
        low, high = min(low, 0), max(high, 0) or 1
    whole = bool((every == every.round()).all())
    locator = MaxNLocator(5, steps=[1, 2, 2.5, 5, 10], integer=whole)
    ticks = locator.tick_values(low, high - 1e-6 * (high - low))
    if snug:
        ticks = [tick for tick in ticks if low <= tick <= high]
    else:
        low, high = ticks[0], ticks[-1]
    return list(ticks), lambda value: start + (value - low) / (high - low) * (end - start)


def _apart(places: Sequence[float]) -> list[float]:
    """Places of labels, moved as little as it takes not to overlap."""
    order, free = np.argsort(places), np.array(places, float)
    for above, below in itertools.pairwise(order):
        free[below] = max(free[below], free[above] + GAP)
    for number, place in enumerate(order[::-1]):
        free[place] = min(free[place], BOTTOM - number * GAP)
    return list(free)


def _text(text: str, x: float, y: float, anchor: str, colour: str = "") -> Html:
    return element("text", text, x=f"{x:.1f}", y=f"{y:.1f}", text_anchor=anchor, class_=colour)


def _rule(text: str, y: float, right: float) -> Html:
    line = element("path", d=f"M{LEFT} {y:.1f}H{right:.1f}", class_="rule")
    return element("g", line, _text(text, LEFT - 6, y + 4, "end"))


def _path(line: Line, across: Place, up: Place, right: float) -> Html:
    points = zip(across(line.x), up(line.y), strict=True) if len(line.x) > 1 else ()
    drawn = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    drawn = drawn if len(line.x) > 1 else f"M{LEFT} {up(line.y[0]):.1f}H{right:.1f}"
    level = " level" * (len(line.x) == 1)
    return element("path", d=drawn, class_=f"line {_shade(line)}{level}")


def _dots(chart: Chart, line: Line, across: Place, up: Place) -> Html:
    every = -(-len(line.x) // DOTS)
    pairs = [*zip(line.x, line.y, strict=True)][::-1][::every][::-1]  # the last among them
    few = " few" * (len(pairs) <= DOTS // 2)
    each = [
        element(
            "circle", cx=f"{across(x):.1f}", cy=f"{up(y):.1f}", r=3, tabindex=-1, role="img",
            aria_label=f"{line.name}: {y:.4g}, {chart.x} {x:,.4g}",
        )
        for x, y in pairs
        if x > 0 or not chart.log
    ]  # fmt: skip
    return element("g", *each, class_=f"dots {_shade(line)}{few}")
