"""A table as it lies in a file; errors name file, column and row."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from jaxrec.data.reading import NAMES, plain, shown
from jaxrec.types import DataError


class RowError(DataError):
    """Bad rows of one table: its file, the column as we call it, and the rows' labels."""

    def __init__(self, message: str, file: str, column: str, rows: pd.Index):
        super().__init__(message)
        self.file, self.column, self.rows = file, column, rows


class Table(NamedTuple):
    """A table as read. The frame's index is the row in the file, whatever has been dropped."""

    file: str
    frame: pd.DataFrame
    first: int = 0  # what the file calls row 0: line 2 of a text with a header, row 0 of a parquet
    unit: str = "row"
    own: Mapping[str, str] = MappingProxyType({})  # the file's names of columns, where given
    parts: tuple[tuple[int, str], ...] = ()  # of several files: the label where each begins, name

    def column(self, name: str) -> pd.Series:
        """A column of the frame."""
        return self.frame.loc[:, name]

    def place(self, row: int) -> str:
        """Where a row of the frame is in the file: "line 17", "row 15", "line 3 of test.csv"."""
        label = int(self.frame.index[row])
        begins, name = max((part for part in self.parts if part[0] <= label), default=(0, ""))
        return f"{self.unit} {label - begins + self.first}" + (f" of {name}" if name else "")

    def refuse(self, bad: np.ndarray | pd.Series, column: str, problem: str) -> None:
        """Raise for the first row where `bad` holds, if there is one."""
        if (rows := np.flatnonzero(bad)).size:
            value = shown(self.frame[column].iloc[rows[0]])
            more = f" ({rows.size} such rows in all)" if rows.size > 1 else ""
            message = (
                f"{self.file}, column '{column}', {self.place(rows[0])}: {value} {problem}{more}"
            )
            raise RowError(message, self.file, column, self.frame.index[rows])

    def named(self, own: Mapping[str, str]) -> Table:
        """The table with its columns among `own` under our names.

        A column that bears one of these names, or is known as it, is not the one that is meant.
        """
        stripped = {str(column).strip(): column for column in self.frame.columns}
        mine = {name: theirs for name, theirs in own.items() if theirs in stripped}
        rename = {stripped[theirs]: name for name, theirs in mine.items()}
        known = {alias for name in mine for alias in (name, *NAMES[name])}
        hidden = [c for c in self.frame.columns if c not in rename and plain(c) in known]
        frame = self.frame.drop(columns=hidden).rename(columns=rename) if mine else self.frame
        return self._replace(frame=frame, own=mine)

    def renamed(self, names: Mapping[str, tuple[str, ...]], required: tuple[str, ...]) -> Table:
        """The table under our column names; other columns keep theirs.

        Raises DataError where two columns claim one name or a required one is missing.
        """
        found = list(map(str, self.frame.columns))
        rename, missing = {}, []
        for name, known in names.items():
            same = [c for c in found if plain(c) in known]
            if len(same) > 1:
                raise DataError(
                    f"{self.file}: columns {same} could each be '{name}'; keep one of them, or "
                    f'say which: --columns {name}="{same[0]}"'
                )
            if not same and name in required:
                missing.append(f"no column '{name}' (or {', '.join(known[1:])})")
            rename |= dict.fromkeys(same, name)
        if missing:
            told = f"{self.file}: {', '.join(missing)}; found {shown(found, 800)}"
            raise DataError(f"{told}. {_remedy(found)}")
        return self._replace(frame=self.frame.rename(columns=rename))


def _remedy(found: list[str]) -> str:
    """What to do about a table that lacks a column, by the names that it has."""
    one = len(found) == 1 and next((mark for mark in ";|\t," if mark in found[0]), None)
    if one:
        return f"Its fields are separated by {one!r}: write .csv with ',' or .tsv with tabs."
    if any(name.replace(".", "", 1).removeprefix("-").isdecimal() for name in found):
        return "If that is the first row, put a line with the columns' names before it."
    return 'Rename the column that holds it, or say which it is: --columns user="Customer ID".'


class Tables(NamedTuple):
    """The tables of a data set."""

    rows: Table
    items: Table | None = None
    users: Table | None = None
    candidates: Table | None = None  # a row for each user, with a list of items
    only_seen: bool = False  # the items' table describes those that occur and is no catalogue


def joined(tables: Mapping[int, Table], file: str) -> Table:
    """Tables of interactions as one, `file`, with the split that each is the part of.

    Its rows are named by the file that they are in. Every table has our column names.
    """
    frames, parts, begins = [], [], 0
    for part, table in tables.items():
        frame = table.frame.drop(columns="split", errors="ignore").assign(split=np.int8(part))
        frame.index = frame.index + begins
        parts.append((begins, table.file.rpartition("/")[2]))
        begins = int(frame.index.max()) + 1 if len(frame) else begins
        frames.append(frame)
    first: Any = next(iter(tables.values()))
    return first._replace(file=file, frame=pd.concat(frames), parts=tuple(parts))
