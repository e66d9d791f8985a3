"""HTML that nothing can be smuggled into: what is not `Html` is escaped where it enters an element.

Tables, cards and ranked lists are all that a page is made of, beside its charts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from rich.table import Table
from rich.text import Text


class Html(str):
    """Markup that is put into a page as it is."""


def element(name: str, *inside: Any, **attributes: Any) -> Html:
    """An element; `class_` is its class, and an underscore in a name stands for a hyphen."""
    named = {key.rstrip("_").replace("_", "-"): value for key, value in attributes.items()}
    told = "".join(f' {key}="{escape(str(value))}"' for key, value in named.items())
    return Html(f"<{name}{told}>{joined(inside)}</{name}>")


def joined(parts: Iterable[Any]) -> Html:
    """Parts one after another, those that are no `Html` escaped."""
    return Html("".join(part if isinstance(part, Html) else escape(str(part)) for part in parts))


def sentence(*words: Any) -> Html:
    """A paragraph in the page's quiet voice."""
    return element("p", *words, class_="quiet")


def table(
    head: Sequence[str], rows: Iterable[Sequence[Any]], keys: Mapping[str, int] | None = None
) -> Html:
    """A table that scrolls in its own box; all columns but the first hold numbers.

    `keys` gives a line's first cell the colour that it has in the charts.
    """
    title = lambda name: element("th", name, scope="col")
    lines = []
    for first, *others in rows:
        colour = (keys or {}).get(str(first))
        key = element("i", class_=f"key c{colour}") if colour is not None else ""
        cells = [element("th", key, first, scope="row"), *(element("td", cell) for cell in others)]
        lines.append(element("tr", *cells))
    whole = element("thead", element("tr", *map(title, head))), element("tbody", *lines)
    return element(
        "div", element("table", *whole), class_="scroll", tabindex=0, role="group",
        aria_label=f"table: {', '.join(head[:3])}",
    )  # fmt: skip


def of_rich(made: Table, keys: Mapping[str, int] | None = None) -> Html:
    """A table as it is made for a terminal."""

    def cell(shown: Any) -> Any:
        text = Text.from_markup(shown) if isinstance(shown, str) else shown
        bold = "bold" in (str(text.style), *(str(span.style) for span in text.spans))
        return element("b", text.plain) if bold else text.plain

    columns = [[cell(shown) for shown in column.cells] for column in made.columns]
    return table([str(column.header) for column in made.columns], zip(*columns, strict=True), keys)


def ranked(names: Iterable[Any], values: Iterable[Any] | None = None) -> Html:
    """A list, best first, with the value of each at its end."""
    names = list(names)
    values = [""] * len(names) if values is None else values
    line = lambda name, value: element("li", element("span", name), element("span", value))
    return element("ol", *map(line, names, values))


def card(title: str, *inside: Any) -> Html:
    """A few lines under one name."""
    return element("section", element("h4", title), *inside, class_="card")


def cards(each: Iterable[Html]) -> Html:
    """Cards side by side, as many as the page is wide."""
    return element("div", *each, class_="cards")


def folded(title: str, *inside: Any) -> Html:
    """What is shown when it is asked for."""
    return element("details", element("summary", title), *inside)
