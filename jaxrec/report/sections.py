"""What only one method can show: `SECTIONS` has, by method, a title and a function.

The function gets the run as its folder tells it and a function that opens its state (slow, and an
error where nothing is saved); it returns markup and charts in the order they are shown in.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxrec import report
from jaxrec.comparison import Run
from jaxrec.methods import fedcia_linear, llmd4rec
from jaxrec.report.charts import Chart, Line
from jaxrec.report.markup import Html, card, cards, element, ranked, sentence, table
from jaxrec.run import Result
from jaxrec.serve import ids
from jaxrec.types import TRAIN, DataError, Dataset

ITEMS, NEIGHBOURS = 6, 5  # whose neighbours are shown, and how many
CODES, BEHIND = 4, 6  # of a level, and items behind a code
GROUPS = 6
Open = Callable[[], Result]
Parts = list[Html | Chart]


def titles(dataset: Dataset) -> np.ndarray:
    """What to call each item: its title, or its raw id where it has none."""
    raw = ids(dataset.items, "item").astype(str)
    if "title" not in dataset.items:
        return raw
    given = dataset.items["title"].fillna("").astype(str).to_numpy()
    return np.where(given == "", raw, given)


def taken(dataset: Dataset) -> np.ndarray:
    """Train rows of each item, int [I]."""
    rows = dataset.interactions
    return np.bincount(rows.loc[rows["split"] == TRAIN, "item"], minlength=dataset.num_items)


def similarities(state: Any, items: np.ndarray) -> np.ndarray:
    """FedCIA's similarities of `items` [A] to all items, [A, I].

    They are the cosines of the server's S or, of a linear model, what having one of `items` adds to
    the score of each other.
    """
    if isinstance(state, fedcia_linear.Model):
        left, right = np.asarray(state.left), np.asarray(state.right)
        return left[items] @ right if len(right) else left[items]
    vectors, values = map(np.asarray, state.shared.similarity)
    factor = vectors * np.sqrt(values)
    factor /= np.maximum(np.linalg.norm(factor, axis=1, keepdims=True), 1e-12)
    return factor[items] @ factor.T


def neighbours(run: Run, opened: Open) -> Parts:
    """The items nearest to those that are taken most."""
    result = opened()
    names, items = titles(result.dataset), _most(taken(result.dataset), ITEMS)
    found = similarities(result.state, items)
    found[np.arange(len(items)), items] = -np.inf
    linear = isinstance(result.state, fedcia_linear.Model)
    what = (
        "What having an item adds to the score of others"
        if linear
        else "Cosine in the server's similarity"
    )
    told = sentence(what, f", for the {len(items)} items with the most train rows.")
    lists = [
        card(names[item], ranked(names[near], (f"{own[n]:.2f}" for n in near)))
        for item, own in zip(items, found, strict=True)
        for near in [_most(own, NEIGHBOURS)]
    ]
    return [told, cards(lists)]


def codes(run: Run, opened: Open) -> Parts:
    """RQFedRec's codes: how evenly items use them, and what is behind the most used ones."""
    result = opened()
    coded = np.asarray(result.state.shared.codes.table)  # [I, P]
    number, levels = run.settings["codes"], run.settings["levels"]
    channels = {"dual": ("semantic", "collaborative")}.get(run.settings["channels"])
    channels = channels or (run.settings["channels"],)
    level = [f"{channel} {n + 1}" for channel in channels for n in range(levels)]
    usage = np.stack([np.bincount(column, minlength=number) for column in coded.T])  # [P, K]
    share = usage / len(coded)
    bits = -np.sum(share * np.log2(np.where(share > 0, share, 1)), axis=1)
    rows = [
        (name, f"{(used > 0).sum()} of {number}", f"{bit:.2f} of {np.log2(number):.2f}", used.max())
        for name, used, bit in zip(level, usage, bits, strict=True)
    ]
    order = np.arange(1, number + 1)
    lines = [
        Line(name, order, np.sort(used)[::-1], place, name)
        for place, (name, used) in enumerate(zip(level, usage, strict=True))
    ]
    names, popular = titles(result.dataset), taken(result.dataset)

    def behind(column: int, code: int) -> Html:
        items = np.flatnonzero(coded[:, column] == code)
        best = items[_most(popular[items], BEHIND)]
        return card(f"{level[column]}, code {code}: {len(items)} items", ranked(names[best]))

    first = range(0, len(level), levels)
    lists = [behind(column, code) for column in first for code in _most(usage[column], CODES)]
    return [
        table(["level", "codes in use", "entropy, bits", "items of the most used"], rows),
        Chart("Items behind each code", "code, most used first", "items", lines),
        sentence("The most used codes of each first level, and the most taken items behind them."),
        cards(lists),
    ]


def distillation(run: Run, opened: Open) -> Parts:
    """LLMD4Rec's distilled loss, ranks and weights over the epochs in which one model learns."""
    rows = report.read_rows(run.folder / "metrics.jsonl")
    learns = {llmd4rec.DOWN: "L learns", llmd4rec.UP: "C learns"}
    parts = {name: [r for r in rows if r["train/phase"] == phase] for phase, name in learns.items()}
    parts = {name: own for name, own in parts.items() if own}
    if not parts:
        raise DataError("no evaluation yet of an epoch in which one model learns from the other")
    both = [row for row in rows if row["train/phase"] in learns]
    kinds = "0", "0 to 1", "1", "1 to 2", "2"

    def lines(name: str, keys: dict[str, str]) -> list[Line]:
        each = [
            (f"{key}, {phase}".strip(", "), field, own)
            for key, field in keys.items()
            for phase, own in parts.items()
        ]
        return [
            Line(
                name, [row["round"] for row in own], [row[f"train/{field}"] for row in own], n, name
            )
            for n, (name, field, own) in enumerate(each)
        ]

    weights = [
        Line(
            f"weight {kind}",
            [row["round"] for row in both],
            [100 * row["train/weights"][n] for row in both],
            n,
            kind,
        )
        for n, kind in enumerate(kinds)
    ]
    return [
        sentence("C is the sequential recommender, L the language model."),
        Chart(
            "What is distilled", "round", "KD per place, weighted", lines("KD", {"": "distilled"})
        ),
        Chart(
            "Rank of the next item",
            "round",
            "mean rank",
            lines("", {"student": "rank_student", "teacher": "rank_teacher"}),
        ),
        Chart("Weights of the places", "round", "share of the places, %", weights),
    ]


def trends(run: Run, opened: Open) -> Parts:
    """AgentCF++'s groups: what their members took most often, more than others, and lately."""
    result = opened()
    if not run.settings["groups"]:
        raise DataError("groups = 0: this run has none")
    groups, names = result.state.groups, titles(result.dataset)
    slot, count, recent = (np.asarray(part) for part in groups)
    members = np.array([(slot == group).any(1).sum() for group in range(len(count))])
    everybody = np.asarray(result.state.popularity)
    expected = count.sum(1, keepdims=True) * everybody / max(everybody.sum(), 1)

    def one(group: int) -> Html:
        lists = [("most often", names[_most(count[group], NEIGHBOURS)])]
        lists += [("more than others do", names[_most(count[group] - expected[group], NEIGHBOURS)])]
        for domain, items in enumerate(recent[group]):
            new = [*dict.fromkeys(items[items < len(names)])][:NEIGHBOURS]
            where = f" in domain {domain}" if len(recent[group]) > 1 else ""
            lists.append((f"lately{where}", names[new] if new else ["nothing"]))
        inside = (part for name, best in lists for part in (element("h5", name), ranked(best)))
        return card(f"Group {group}: {members[group]:,} members", *inside)

    largest = _most(members, GROUPS)
    told = sentence(
        f"What the members of the {len(largest)} largest of {len(count)} groups took, train rows."
    )
    return [told, cards(map(one, largest))]


def stories(run: Run, opened: Open) -> Parts:
    """The users of `stories.md`: what the agents remembered before, what happened, and after."""
    path = run.folder / "stories.md"
    if not path.exists():
        raise DataError(
            f"{path}: missing; it is written when a run ends, for the setting stories > 0"
        )
    return [
        element(
            "div", *map(_markdown, path.read_text(encoding="utf-8").splitlines()), class_="story"
        )
    ]


def _markdown(line: str) -> Html:
    strong = re.split(r"\*\*(.+?)\*\*", line.removeprefix("# ").removeprefix("- "))
    inside = [element("b", part) if n % 2 else part for n, part in enumerate(strong)]
    kind = "h4" if line.startswith("# ") else "p"
    return element(kind, *inside, class_="event" if line.startswith("- ") else "told")


def _most(values: Sequence[float] | np.ndarray, number: int) -> np.ndarray:
    """Places of the largest, the first of equals first."""
    return np.argsort(-np.asarray(values, float), kind="stable")[:number]


SECTIONS: dict[str, tuple[str, Callable[[Run, Open], Parts]]] = {
    "fedcia": ("Similar items", neighbours),
    "rqfedrec": ("Codes", codes),
    "llmd4rec": ("Who teaches whom", distillation),
    "agentcf": ("Interest groups", trends),
    "agentcf_text": ("Memories", stories),
}
