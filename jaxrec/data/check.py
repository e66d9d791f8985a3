"""What a data set holds and what is wrong with it.

Reading stops at the first fault. Here rows with a fault are noted and left out, and the tables are
assembled again, until nothing is left to say: the faults and their words are those of `load`.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxrec.data.pack import pack
from jaxrec.data.partition import partition
from jaxrec.data.reading import AS_IT_IS, INTERACTIONS, Reading, plain
from jaxrec.data.sources import load, tables_of
from jaxrec.data.split import core, split
from jaxrec.data.table import RowError, Table, Tables
from jaxrec.data.tables import assemble
from jaxrec.data.text import texts
from jaxrec.types import DataError, Dataset, SettingError

TABLES = ("rows", "items", "users", "candidates")
KEYS = ("user", "item", "candidates")  # columns without which a row is nothing
NAMES = INTERACTIONS | {"timestamp": INTERACTIONS["timestamp"] + INTERACTIONS["position"]}
CLIENTS = 100  # of the federation that is tried


class Findings(NamedTuple):
    """What `examine` found."""

    dataset: Dataset | None  # without the rows at fault; None if nothing can be read
    problems: list[str]  # each would stop a run; file, column, row, value and remedy
    notes: list[str]  # what is done about the data, or worth knowing
    left_out: bool  # whether rows at fault were left out of the dataset


def examine(
    name_or_path: str | Path, reading: Reading = AS_IT_IS, *, progress: bool = True
) -> Findings:
    """Read a data set as `load` does, past every fault that rows have."""
    problems: list[str] = []
    dataset, left_out = None, False
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            if str(name_or_path) == "synthetic":
                dataset = load(name_or_path, **reading.reading())
            else:
                name, tables = tables_of(name_or_path, reading, progress=progress)
                dataset = _assemble(problems, name, tables, reading)
            if dataset:
                left_out = bool(problems)
                after = ", once the rows named before are left out" if left_out else ""
                problems += [problem + after for problem in _not_ready(dataset)]
        except (DataError, SettingError) as error:
            problems.append(str(error))
    notes = list(dict.fromkeys(str(each.message) for each in caught))
    told = _notes(dataset, reading) if dataset else []
    return Findings(dataset, problems, notes + told, left_out)


def knows(dataset: Dataset) -> dict[str, bool]:
    """Whether the data have what methods ask for."""
    return {
        "order": "timestamp" in dataset.interactions,
        "text": any(texts(dataset.items)),
        "domains": "domain" in dataset.items,
    }


def counts(dataset: Dataset) -> dict[str, np.ndarray]:
    """Interactions of each user and of each item."""
    rows = dataset.interactions
    return {
        "user": np.bincount(rows["user"], minlength=dataset.num_users),
        "item": np.bincount(rows["item"], minlength=dataset.num_items),
    }


def histogram(numbers: np.ndarray) -> list[tuple[str, int]]:
    """How many numbers are 0, 1, 2 to 3, 4 to 7, ...: (range, count), smallest to largest."""
    bins = np.bincount(np.frexp(numbers.astype(float))[1])
    name = lambda low: f"{low:,}" if low < 2 else f"{low:,} - {2 * low - 1:,}"
    labels = ["0", *(name(2**power) for power in range(len(bins) - 1))]
    lines = [(label, int(number)) for label, number in zip(labels, bins, strict=True)]
    return lines[int(np.argmax(bins > 0)) :]


def _assemble(problems: list[str], name: str, tables: Tables, reading: Reading) -> Dataset | None:
    """The Dataset without the rows at fault, or None if no row is left; adds to `problems`."""
    while True:
        try:
            return assemble(name, tables, reading)
        except RowError as error:
            problems.append(str(error))
            which = next(name for name in TABLES if _is(getattr(tables, name), error.file))
            mended = _mended(getattr(tables, which), error=error, pointed_at=which != "rows")
            tables = tables._replace(**{which: mended})
            if mended.frame.empty:
                return None


def _is(table: Table | None, file: str) -> bool:
    return table is not None and table.file == file


def _mended(table: Table, *, error: RowError, pointed_at: bool) -> Table:
    """Without the rows at fault, or, where none is left or others point at them, the column."""
    left = table.frame.drop(index=error.rows.unique())
    if error.column not in KEYS and (left.empty or pointed_at):
        known = NAMES[error.column]
        left = table.frame.drop(columns=[name for name in table.frame if plain(name) in known])
    return table._replace(frame=left)


def _not_ready(dataset: Dataset) -> list[str]:
    """What stops the way from a Dataset to arrays, by the split and clients of a default run."""
    problems = []
    alone = counts(dataset)["user"] == 0
    if alone.any():
        first = dataset.users["raw_id"].iloc[int(np.argmax(alone))]
        more = f" ({alone.sum()} such users in all)" if alone.sum() > 1 else ""
        problems.append(
            f"{dataset.name}, column 'user': user {first} of the users' table has no interaction"
            f"{more}; leave them out of it, or train with --min-user 1"
        )
        dataset = core(dataset, 1, 0)
    try:
        dataset = split(dataset)
        who = "given" if "client" in dataset.interactions else "blocks"
        pack(partition(dataset, who, min(CLIENTS, dataset.num_users)))
    except DataError as error:
        problems.append(str(error))
    return problems


def _notes(dataset: Dataset, reading: Reading) -> list[str]:
    rows, notes = dataset.interactions, []
    if "rating" in rows and reading.min_rating is None:
        notes.append(
            "ratings are not read by any method: every row counts as chosen; leave out the rows "
            "that do not, such as by --min-rating 4"
        )
    if "timestamp" in rows:
        if (tied := rows.duplicated(["user", "timestamp"], keep=False).mean()) > 0.5:
            notes.append(
                f"{tied:.0%} of the rows have the same time as another row of their user: their "
                "order is that of the file"
            )
        if (few := (counts(dataset)["user"] < 3).sum()) and "split" not in rows:
            notes.append(f"{few:,} users have fewer than 3 rows: leave-one-out tests none of them")
    described = texts(dataset.items)
    if any(described) and (bare := described.count("")):
        notes.append(f"{bare:,} of {len(described):,} items have no text")
    return notes
