"""A week of daily updates against training anew: accuracy and seconds on MovieLens-1M by time.

    python -m benchmarks updates [--quick]

A run is trained on all rows before 4 December 2000, a Monday. Each day's rows are then added, and
the run goes on from that of the day before (`--from`). Beside it the same method is trained anew,
on all rows up to the next Monday. What counts is what the users of these rows take after it:
NDCG@10 over the items that they did not have, and the paired difference with its standard error.

The settings are those of `configs/`. An update takes a tenth of the rounds that the first run took,
and one evaluation. `--quick` takes two days of the two methods that need no rounds.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pandas as pd

import jaxrec
from benchmarks.common import Bench, Timing
from jaxrec.training.settings import read_toml

DAY = 24 * 60 * 60
MONDAY = int(pd.Timestamp("2000-12-04").timestamp())
DAYS, K = 7, 10
LATELY = 500  # items that a run without updates may not know that a user has
CONFIGS = "fedmf-ml1m", "rqfedrec-ml1m", "sequential-ml1m"
ONE_SHOT: dict[str, dict[str, Any]] = {
    "popularity": {},
    "fedcia": {"model": "ease", "ridge": 1000.0, "privacy": "plain"},
}


def main(bench: Bench, quick: bool) -> None:
    rows, items = log()
    runs = [(name, name, settings) for name, settings in ONE_SHOT.items()]
    if not quick:
        folder = Path(__file__).parents[1] / "configs"
        runs += [(name, *read_toml(folder / f"{name}.toml")) for name in CONFIGS]
    for name, method, settings in runs:
        settings |= {
            "split": "leave-one-out",
            "partition": "user",
            "baselines": (),
            "progress": False,
        }
        settings.pop("data", None)
        with tempfile.TemporaryDirectory() as folder:
            compare(bench, name, method, settings, rows, items, Path(folder), 2 if quick else DAYS)


def log() -> tuple[pd.DataFrame, pd.DataFrame]:
    """The interactions, by raw ids, and the items."""
    whole = jaxrec.load("movielens-1m", progress=False)
    users, items = whole.users["raw_id"].to_numpy(), whole.items["raw_id"].to_numpy()
    rows = whole.interactions
    rows = rows.assign(user=users[rows["user"]], item=items[rows["item"]])
    return rows[["user", "item", "timestamp"]], whole.items.assign(item=items)


def compare(
    bench: Bench,
    name: str,
    method: str,
    settings: dict[str, Any],
    rows: pd.DataFrame,
    items: pd.DataFrame,
    folder: Path,
    days: int,
) -> None:
    """Report the seconds of a week's updates and of training anew, and what both reach."""
    when = rows["timestamp"].to_numpy()

    def between(start: int, stop: int) -> jaxrec.Dataset:
        part = rows[(when >= start) & (when < stop)]
        return jaxrec.load(part, items=items[items["item"].isin(part["item"])])

    run, costs = folder / "day-0", []
    first = jaxrec.train(method, between(0, MONDAY), out=run, **settings)
    few = max(1, first.values["rounds"] // 10)
    update = {"rounds": few, "evaluate_every": few, "progress": False}
    for day in range(days):
        start = MONDAY + day * DAY
        newer, before, run = between(start, start + DAY), run, folder / f"day-{day + 1}"
        costs.append(cost(from_run=before, data=newer, out=run, **update))
    end = MONDAY + days * DAY
    anew = cost(method=method, data=between(0, end), out=folder / "anew", **settings)
    part = rows[rows["user"].isin(jaxrec.open(folder / "anew").users.raw)]
    had, takes = part[part["timestamp"] < end], part[part["timestamp"] >= end]
    for what, each in (("trained anew", [anew]), ("a day's update", costs)):
        compiling, rest, training, sent = np.median(each, axis=0)
        bench.report(f"{name}, {what}", Timing(compiling, rest, 0.0, len(each)))
        print(f"    of which training {training:.2f} s; {sent / 1e6:,.2f} MB a client")
    best = accuracy(folder / "anew", had, takes)
    for what, place in (("daily updates", run), ("no updates", folder / "day-0")):
        found = accuracy(place, had, takes)
        less = (found - best) / best.mean()
        print(
            f"    {what}: NDCG@{K} {found.mean():.4f}, trained anew {best.mean():.4f}, "
            f"{less.mean():+.1%} +- {less.std(ddof=1) / len(less) ** 0.5:.1%} "
            f"over {len(less):,} users",
            flush=True,
        )


def cost(**given: Any) -> tuple[float, float, float, float]:
    """Seconds of compiling and of all else of a run, those of its rounds, and bytes of a client."""
    jax.clear_caches()  # a process of its own compiles anew
    began = time.perf_counter()
    values = jaxrec.train(**given).values
    seconds, compiling = time.perf_counter() - began, values["seconds/compile"]
    return compiling, seconds - compiling, values["seconds/train"], values["bytes/per_client"]


def accuracy(run: Path, had: pd.DataFrame, takes: pd.DataFrame) -> np.ndarray:
    """NDCG@K of each user who takes something, over the items that the user did not have.

    Somebody whom the run does not know gets what is popular.
    """
    users, pairs = takes["user"].unique(), ["user", "item"]
    index = lambda table: pd.MultiIndex.from_frame(table[pairs])
    lists = jaxrec.open(run).recommend(users, K + LATELY, unknown="popularity")
    lists = lists[~index(lists).isin(index(had))]
    place = lists.groupby("user").cumcount().to_numpy()
    lists, place = lists[place < K], place[place < K]
    gain = pd.Series(index(lists).isin(index(takes)) / np.log2(2 + place))
    gain = gain.groupby(lists["user"].to_numpy()).sum().reindex(users, fill_value=0)
    discounts = np.cumsum(1 / np.log2(2 + np.arange(K)))
    number = takes.groupby("user")["item"].nunique().clip(upper=K)
    return gain.to_numpy() / discounts[number[users] - 1]
