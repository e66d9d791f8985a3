"""What only one method can show: `SECTIONS` has, by method, a title and a function.

The function gets the run as its folder tells it and a function that opens its state (slow, and an
error where nothing is saved); it returns markup and charts in the order they are shown in. It reads
what a run has stored: settings, rows of metrics, arrays of the state by the names of their fields.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxrec import files
from jaxrec.data.ids import raw_ids
from jaxrec.report.charts import Chart, Line, Parts
from jaxrec.report.comparison import Run
from jaxrec.report.markup import Html, card, cards, element, joined, ranked, sentence, table
from jaxrec.training.run import Result
from jaxrec.types import TRAIN, DataError, Dataset

ITEMS, NEIGHBOURS = 6, 5  # whose neighbours are shown, and how many
CODES, BEHIND = 3, 6  # of a level, and items behind a code
GROUPS = 6
WEIGHTS = "0", "0 to 1", "1", "1 to 2", "2"  # the kinds that LLMD4Rec counts
LANGUAGE_LEARNS, SEQUENTIAL_LEARNS = 1, 2  # of LLMD4Rec's train/phase, where one model is taught
LINEAR = "gfcf", "ease"  # of FedCIA's models: weights from item to item in place of tables
Open = Callable[[], Result]


def titles(dataset: Dataset) -> np.ndarray:
    """What to call each item: its title, or its raw id where it has none."""
    raw = raw_ids(dataset.items, "item").astype(str)
    if "title" not in dataset.items:
        return raw
    given = dataset.items["title"].fillna("").astype(str).to_numpy()
    return np.where(given == "", raw, given)


def neighbours(run: Run, opened: Open) -> Parts:
    """FedCIA: the items nearest to those that are taken most."""
    result = opened()
    names, items = titles(result.dataset), most(_taken(result.dataset), ITEMS)
    linear = run.settings["model"] in LINEAR
    if linear:
        found = weight_rows(result.state.left, result.state.right, items)
    else:
        state = result.state  # of Newton steps, or of gradient steps
        vectors, values = getattr(state, "shared", state).similarity
        found = cosine_rows(vectors, values, items)
    found[np.arange(len(items)), items] = -np.inf
    what = "what having it adds to the score of others" if linear else "cosines in what is shared"
    lists = []
    for item, own in zip(items, found, strict=True):
        near = most(own, NEIGHBOURS)
        lists.append(
            card(str(names[item]), ranked(names[near], (f"{value:.3f}" for value in own[near])))
        )
    return [sentence(f"Of the {len(items)} items with the most train rows: {what}."), cards(lists)]


def weight_rows(left: Any, right: Any, items: np.ndarray) -> np.ndarray:
    """What having one of `items` [A] adds to the score of each item, [A, I].

    The weights are `left` [I, R] times `right` [R, I], or `left` [I, I] where `right` is empty.
    """
    left, right = np.asarray(left), np.asarray(right)
    return left[items] @ right if len(right) else left[items]


def cosine_rows(vectors: Any, values: Any, items: np.ndarray) -> np.ndarray:
    """The cosines of `items` [A] with all items, [A, I].

    Their inner products are those of S = V diag(v) V^T, of `vectors` V [I, R] and `values` v [R].
    """
    factor = np.asarray(vectors) * np.sqrt(np.asarray(values))
    factor /= np.maximum(np.linalg.norm(factor, axis=1, keepdims=True), 1e-12)
    return factor[items] @ factor.T


def codes(run: Run, opened: Open) -> Parts:
    """RQFedRec: how evenly items use their codes, and what is behind the most used ones."""
    result, given = opened(), run.settings
    coded = np.asarray(result.state.shared.codes.table)  # [I, P]
    dual = given["channels"] == "dual"
    channels = ("semantic", "collaborative") if dual else (given["channels"],)
    levels = [f"{name} {number + 1}" for name in channels for number in range(given["levels"])]
    usage = np.stack([np.bincount(column, minlength=given["codes"]) for column in coded.T])
    rows, lines, lists = [], [], []
    names, popular = titles(result.dataset), _taken(result.dataset)
    for place, (level, used) in enumerate(zip(levels, usage, strict=True)):
        share = used[used > 0] / used.sum()
        bits = f"{-np.sum(share * np.log2(share)):.2f} of {np.log2(len(used)):.2f}"
        rows.append((level, f"{len(share):,} of {len(used):,}", bits, f"{used.max():,}"))
        order = np.arange(1, len(used) + 1)
        lines.append(Line(level, order, np.sort(used)[::-1], place, level))
        for code in most(used, CODES) if place % given["levels"] == 0 else ():
            items = np.flatnonzero(coded[:, place] == code)
            best = names[items[most(popular[items], BEHIND)]]
            lists.append(card(f"{level}, code {code}: {len(items):,} items", ranked(best)))
    return [
        table(["level", "codes in use", "entropy, bits", "items of the most used"], rows),
        Chart("Items behind each code", "code, most used first", "items", lines),
        sentence("The most used codes of each first level, and the most taken items behind them."),
        cards(lists),
    ]


def distillation(run: Run, opened: Open) -> Parts:
    """LLMD4Rec: what is distilled, ranks and weights, over the epochs in which one is taught."""
    rows = files.read_rows(run.folder / "metrics.jsonl")
    phases = LANGUAGE_LEARNS, SEQUENTIAL_LEARNS
    rows = [r for r in rows if r["train/phase"] in phases and r["train/rank_teacher"] > 0]
    if not rows:
        raise DataError(
            "there is no evaluation yet of an epoch in which one model teaches the other"
        )

    def lines(label: str, colour: int, value: Callable[[files.Row], float | None]) -> list[Line]:
        pairs = [(row["round"], found) for row in rows if (found := value(row)) is not None]
        if not pairs:
            return []
        rounds, values = zip(*pairs, strict=True)
        return [Line(label, rounds, values, colour, label)]

    def learns(phase: int) -> Callable[[files.Row], float | None]:
        return lambda row: row["train/distilled"] if row["train/phase"] == phase else None

    def rank(phase: int) -> Callable[[files.Row], float]:
        return lambda row: row[
            f"train/rank_{'student' if row['train/phase'] == phase else 'teacher'}"
        ]

    def both(value: Callable[[int], Callable], told: str) -> list[Line]:
        language = lines(f"L{told}", 0, value(LANGUAGE_LEARNS))
        return language + lines(f"C{told}", 1, value(SEQUENTIAL_LEARNS))

    weight = lambda kind: lambda row: 100 * row["train/weights"][kind]
    kinds = [line for n, kind in enumerate(WEIGHTS) for line in lines(kind, n, weight(n))]
    return [
        sentence("C is the sequential recommender, L the language model."),
        Chart(
            "What is distilled",
            "round",
            "KL divergence of a place, weighted",
            both(learns, " learns"),
        ),
        Chart("Rank of the next item", "round", "mean rank", both(rank, "")),
        Chart("Weights of the places", "round", "share of the places, %", kinds),
    ]


def trends(run: Run, opened: Open) -> Parts:
    """AgentCF++: what each group's members took most often, more than others, and lately."""
    if not run.settings["groups"]:
        raise DataError("groups = 0: this run has none")
    result = opened()
    names, everybody = titles(result.dataset), np.asarray(result.state.popularity)
    slot, count, recent = map(np.asarray, result.state.groups)  # [U, M], [G, I], [G, M, R]
    members = np.array([(slot == group).any(1).sum() for group in range(len(count))])
    count, everybody = count.astype(float), everybody.astype(float)
    excess = count * everybody.sum() - count.sum(1, keepdims=True) * everybody
    lists = []
    for group in most(members, GROUPS):
        told = {"most often": most(count[group], NEIGHBOURS)}
        told["more than others do"] = most(excess[group], NEIGHBOURS)
        for domain, items in enumerate(recent[group]):
            where = f" in domain {domain}" if len(recent[group]) > 1 else ""
            newest = [*dict.fromkeys(items[items < len(names)].tolist())]
            told[f"lately{where}"] = np.array(newest[:NEIGHBOURS], int)
        inside = [
            part for h, items in told.items() for part in (element("h5", h), ranked(names[items]))
        ]
        lists.append(card(f"Group {group}: {members[group]:,} members", *inside))
    what = (
        f"What members of the {len(lists)} largest of {len(count)} groups took in the train rows."
    )
    return [sentence(what), cards(lists)]


def stories(run: Run, opened: Open) -> Parts:
    """AgentCF++ with text: what some users remembered before, what happened, and after."""
    path = run.folder / "stories.md"
    if not path.exists():
        raise DataError(f"{path}: missing; it is written when a run ends, if stories > 0")
    lines = path.read_text(encoding="utf-8").splitlines()
    return [element("div", *map(_markdown, filter(None, lines)), class_="story")]


def _markdown(line: str) -> Html:
    kind = {"# ": ("h4", ""), "- ": ("p", "event")}.get(line[:2])
    parts = re.split(r"\*\*(.+?)\*\*", line[2:] if kind else line)
    inside = joined(element("b", part) if n % 2 else part for n, part in enumerate(parts))
    name, style = kind or ("p", "")
    return element(name, inside, class_=style)


def most(values: Sequence[float] | np.ndarray, number: int) -> np.ndarray:
    """Places of the largest values, the first of equals first."""
    return np.argsort(-np.asarray(values, float), kind="stable")[:number]


def _taken(dataset: Dataset) -> np.ndarray:
    rows = dataset.interactions
    return np.bincount(rows.loc[rows["split"] == TRAIN, "item"], minlength=dataset.num_items)


SECTIONS: dict[str, tuple[str, Callable[[Run, Open], Parts]]] = {
    "fedcia": ("Similar items", neighbours),
    "rqfedrec": ("Codes", codes),
    "llmd4rec": ("Who teaches whom", distillation),
    "agentcf": ("Interest groups", trends),
    "agentcf_text": ("Memories", stories),
}
