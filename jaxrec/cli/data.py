"""The command: python -m jaxrec.data check NAME|PATH"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
from rich import box
from rich.table import Table
from rich.text import Text

from jaxrec.cli.command import console, exit_status, print_options, wants_help
from jaxrec.data.check import counts, examine, histogram, knows
from jaxrec.data.reading import Reading
from jaxrec.methods import METHODS
from jaxrec.settings.fields import unknown
from jaxrec.settings.words import read_options
from jaxrec.types import TEST, TRAIN, VALID, Dataset, SettingError

PROGRAM = "python -m jaxrec.data check"
ABOUT = f"""{PROGRAM} NAME|PATH [--option value ...]

Read a data set in any form that jaxrec.load knows and print what it holds, everything that is wrong
with it, and which methods can work on it. Exit status 2 where something is wrong."""
BAR = 40  # letters of the longest bar
REMEDIES = {
    "order": "add a column timestamp or position to the interactions",
    "text": "add a title, text or category to the items",
    "domains": "add a column domain to the items, 0, 1, ..., or set --ranking rows",
}


def main(words: Sequence[str]) -> int:
    """Check as the words say; returns the exit status."""
    return exit_status(lambda: _check(words))


def _check(words: Sequence[str]) -> int:
    if wants_help(words):
        print_options(Reading, PROGRAM, ABOUT)
    if not words or words[0] != "check":
        raise unknown(f"{' '.join(words) or 'nothing'}: no such command", "check", ["check"])
    number = next((n for n, word in enumerate(words) if word.startswith("--")), len(words))
    if number != 2:
        raise SettingError(f"{number - 1} data sets: name one, its path or its name")
    found = examine(words[1], read_options(Reading, words[2:]))
    shown = console(highlight=False)
    if found.dataset:
        for part in pages(found.dataset):
            shown.print(part)
    for kind, lines in (("note", found.notes), ("wrong", found.problems)):
        for line in lines:
            shown.print(f"{kind}: {line}", markup=False, soft_wrap=True)
    wrong = len(found.problems)
    left = " What stands above is without the rows named." if found.left_out else ""
    print(f"{wrong} to mend.{left}" if wrong else "Nothing is wrong.")
    return 2 if wrong else 0


def pages(dataset: Dataset) -> Iterator[Table]:
    """Numbers, histograms and methods."""
    yield _numbers(dataset)
    for who, numbers in counts(dataset).items():
        yield _bars(who, numbers)
    yield _methods(dataset)


def _numbers(dataset: Dataset) -> Table:
    rows, cells = dataset.interactions, dataset.num_users * dataset.num_items
    lines = {
        "users": f"{dataset.num_users:,}",
        "items": f"{dataset.num_items:,}",
        "interactions": f"{len(rows):,}, sparsity {1 - len(rows) / cells:.3%}",
    }
    if "split" in rows:
        part = [f"{(rows['split'] == which).sum():,}" for which in (TRAIN, VALID, TEST)]
        lines["split"] = "{} train, {} valid, {} test".format(*part)
    if "client" in rows:
        lines["clients"] = f"{rows['client'].nunique():,}"
    if "domain" in dataset.items:
        sizes = np.bincount(dataset.items["domain"].clip(lower=0))
        lines["domains"] = f"{len(sizes)}, of {' and '.join(f'{size:,}' for size in sizes)} items"
    if "timestamp" in rows:
        lines["time"] = _span(rows["timestamp"])
    shown = Table(box=box.SIMPLE_HEAD, show_header=False)
    for name, text in {dataset.name: "", **lines}.items():
        shown.add_row(Text(name), text)
    return shown


def _span(times: pd.Series) -> str:
    first, last = int(times.min()), int(times.max())
    if first < 10**8 or last >= 10**11:  # not seconds since 1970, from 1973 on
        return f"{first:,} to {last:,}, an order"
    dates = (f"{pd.Timestamp(second, unit='s'):%Y-%m-%d}" for second in (first, last))
    return " to ".join(dates)


def _bars(who: str, numbers: np.ndarray) -> Table:
    shown = Table(box=box.SIMPLE_HEAD)
    shown.add_column(f"rows per {who}", justify="right")
    shown.add_column(f"{who}s", justify="right")
    mean, middle = numbers.mean(), np.median(numbers)
    shown.add_column(f"mean {mean:,.1f}, median {middle:,.0f}, most {numbers.max():,}")
    lines = histogram(numbers)
    longest = max(number for _, number in lines)
    for label, number in lines:
        shown.add_row(label, f"{number:,}", "█" * -(-BAR * number // longest))
    return shown


def _methods(dataset: Dataset) -> Table:
    has = knows(dataset)
    shown = Table(box=box.SIMPLE_HEAD)
    shown.add_column("method")
    for name, there in has.items():
        shown.add_column(f"{name}: {'yes' if there else 'no'}")
    shown.add_column("can run")
    for method, module in METHODS.items():
        needs, uses = module.TRAITS.needs, module.TRAITS.uses
        cells = ["needs" if name in needs else "uses" if name in uses else "" for name in has]
        missing = [need for need in needs if not has[need]]
        remedy = f"no: {'; '.join(REMEDIES[name] for name in missing)}" if missing else "yes"
        shown.add_row(method, *cells, remedy)
    return shown
