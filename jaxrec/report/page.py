"""One HTML page about runs: what they have in common, then each by itself.

What a run lacks is left out with a sentence that says why, so that a page can be had at any time.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import itertools
import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from string import Template
from typing import NamedTuple

import numpy as np

from jaxrec.data.ids import raw_ids
from jaxrec.report import charts, overview
from jaxrec.report.charts import Chart, Parts
from jaxrec.report.markup import Html, card, cards, element, folded, joined, ranked, sentence, table
from jaxrec.report.overview import Comparable, ShownRun, read_comparable
from jaxrec.report.sections import SECTIONS, Open, titles
from jaxrec.serving.model import Model
from jaxrec.training.opening import reopen
from jaxrec.training.settings import settings_of
from jaxrec.types import REFUSALS, Dataset, SettingError

TEMPLATE = Path(__file__).with_name("page.html")


class Page(NamedTuple):
    """A whole HTML document, and its charts by a name for their file."""

    html: str
    charts: dict[str, Chart]


class Section(NamedTuple):
    """A titled piece of the page."""

    title: str
    parts: Parts
    level: int = 3


def page(
    runs: Iterable[str | Path],
    metric: str | None = None,
    *,
    users: int = 3,
    k: int = 10,
    data: Dataset | str | Path | None = None,
) -> Page:
    """The page of some run folders and their baselines.

    Args:
      runs: folders; those that differ only in their seed have one colour.
      metric: such as "NDCG@10"; by default the one the first run monitors.
      users: whose lists are shown.
      k: items of a list.
      data: where runs have not kept their data: the Dataset, or where they are now.

    Raises:
      CheckpointError: a folder is no run.
      SettingError: the metric was not measured; a run occurs twice; nothing to show.
    """
    folders = [Path(run) for run in runs]
    if users < 1 or k < 1 or not folders:
        raise SettingError(f"users = {users}, k = {k}, {len(folders)} runs: 1 or more of each")
    groups = [(each, overview.metric_of(each, metric)) for each in read_comparable(folders)]
    together, alone, given = [], [], []
    for comparable, drawn in groups:
        methods = dict.fromkeys(one.run.method for one in comparable.values())
        title = "Results" if len(groups) == 1 else f"Results: {', '.join(methods)}"
        together += [Section(title, [], 2), *_together(comparable, folders, drawn)]
        for name, one in comparable.items():
            if one.run.folder in folders:
                given.append(one)
                alone += [Section(name, [sentence(one.run.folder)], 2)]
                alone += _alone(one, drawn, users, k, data)
    each = lambda of: ", ".join(dict.fromkeys(map(of, given)))
    title = f"{each(lambda one: one.run.method)} on {each(lambda one: one.record['data']['name'])}"
    return _assemble(title, together + alone)


def _together(runs: Comparable, folders: list[Path], metric: str) -> Iterable[Section]:
    """The sections of runs that can be compared."""
    yield _section("Test", lambda: overview.results(runs))
    yield _section("Curves", lambda: overview.curves(runs, metric))
    yield _section("Users and clients", lambda: overview.spread(runs, metric))
    yield _section("Differences", lambda: overview.differences(runs, folders, metric))
    yield _section("Time", lambda: overview.times(runs))


def _section(title: str, draw: Callable[[], Parts]) -> Section:
    """What `draw` returns, or the reason it gives for having nothing to show."""
    try:
        return Section(title, draw())
    except (*REFUSALS, OSError) as error:
        return Section(title, [sentence("Left out: ", error)])


def _alone(
    one: ShownRun, metric: str, users: int, k: int, data: Dataset | str | Path | None
) -> Iterable[Section]:
    """The sections of one run."""
    opened = functools.cache(lambda: reopen(one.run.folder, data, progress=False))
    if one.run.method in SECTIONS:
        title, own = SECTIONS[one.run.method]
        yield _section(title, lambda: own(one.run, opened))
    yield _section("Lists", lambda: _lists(one, opened, metric, users, k))
    yield _section("Settings and environment", lambda: _settings(one))


def _lists(one: ShownRun, opened: Open, metric: str, users: int, k: int) -> Parts:
    """What users have and what is recommended to them, from the worst served user to the best."""
    result = opened()
    dataset, rows = result.dataset, result.dataset.interactions
    value = overview.of_each(one.run, metric, "user").sort_values(kind="stable")
    from_worst = value.index.to_numpy() if len(value) else np.arange(dataset.num_users)
    chosen = from_worst[np.unique(np.linspace(0, len(from_worst) - 1, users).astype(int))]
    raw = raw_ids(dataset.users, "user")[chosen]
    found = Model(result).recommend(raw, k)
    names = titles(dataset)
    called = dict(zip(raw_ids(dataset.items, "item"), names, strict=True))
    newest = "timestamp" in rows
    rows = rows.sort_values("timestamp", kind="stable")[::-1] if newest else rows

    def one_user(user: int, name: object) -> Html:
        own, best = rows.loc[rows["user"] == user, "item"], found[found["user"] == name]
        score = f", {metric} {value[user]:.3f}" if user in value.index else ""
        return card(
            f"User {name}{score}",
            element("h5", "has", ", newest first" if newest else ""),
            ranked(names[own[:k]]),
            element("h5", "is recommended"),
            ranked((called[item] for item in best["item"]), (f"{s:.3f}" for s in best["score"])),
        )

    return [cards(map(one_user, chosen.tolist(), raw))]


def _settings(one: ShownRun) -> Parts:
    """Settings, those that are not the defaults in bold, data, versions and every number."""
    plain = lambda value: json.dumps(value, default=str)
    given, defaults = one.record["settings"], settings_of(one.run.method)
    own = lambda name: name not in defaults or plain(given[name]) != plain(defaults[name].default)
    bold = lambda name, text: element("b", text) if own(name) else text
    rows = [(bold(name, name), bold(name, plain(value))) for name, value in given.items()]
    here = {**one.record["data"], **one.record["versions"], "device": one.record.get("device", "")}
    parts: Parts = [folded("Settings; bold: not the default", table(["setting", "value"], rows))]
    parts += [folded("Data and environment", table(["of", "value"], here.items()))]
    numbers = one.run.values.items()
    if numbers:
        parts += [folded("Every number of the result", table(["name", "value"], numbers))]
    return parts


def _assemble(title: str, sections: list[Section]) -> Page:
    """The document; neighbouring charts stand side by side."""
    found: dict[str, Chart] = {}
    blocks, links, above = [], [], ""
    for number, (name, parts, level) in enumerate(sections):
        body = [element(f"h{level}", name, id=f"part-{number}")]
        for drawn, group in itertools.groupby(parts, lambda part: isinstance(part, Chart)):
            group = list(group)
            figures = [part for part in group if isinstance(part, Chart)]
            row = element("div", *map(charts.svg, figures), class_="figures")
            body += [row] if drawn else group
            for chart in figures:
                stem = re.sub(r"\W+", "-", f"{above} {chart.title}").strip("-").lower()
                found[f"{stem}-{number}" if stem in found else stem] = chart
        if level == 2:
            above = name
            links.append(element("a", name, href=f"#part-{number}"))
        blocks.append(element("section", *body))
    text = TEMPLATE.read_text(encoding="utf-8")
    script = text.partition("<script>")[2].partition("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    colours = {
        kind: " ".join(f"--c{n}:{colour};" for n, colour in enumerate(palette))
        for kind, palette in (("light", charts.LIGHT), ("dark", charts.DARK))
    }
    whole = Template(text).substitute(
        title=joined([title]), links=joined(links), body=joined(blocks), script=digest, **colours
    )
    return Page(whole, found)
