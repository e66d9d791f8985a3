"""From a table as it lies in a file to a checked Dataset; errors name file, column and row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple
from warnings import warn

import numpy as np
import pandas as pd

from jaxrec.data.blocks import count, gather, sorted_blocks
from jaxrec.types import DataError, Dataset

# Compared in lower case without "_", "-" and spaces. A position orders rows without timestamp.
INTERACTIONS = {
    "user": ("user", "userid"),
    "item": ("item", "itemid", "movie", "movieid", "product", "productid", "artistid"),
    "rating": ("rating",),
    "timestamp": ("timestamp", "time"),
    "position": ("position", "order"),
    "domain": ("domain",),
    "client": ("client", "clientid"),
    "split": ("split",),
}
ITEMS = {
    "item": INTERACTIONS["item"],
    "title": ("title", "movietitle", "name"),
    "text": ("text", "description"),
    "category": ("category", "categories", "genre", "genres", "class"),
    "domain": ("domain",),
    "raw_id": ("rawid", "originid", "asin"),
}
USERS = {"user": INTERACTIONS["user"], "raw_id": ("rawid", "originid")}
LISTS = {"user": INTERACTIONS["user"], "candidates": ("candidates", "candidateitems")}
SPLITS = {"train": 0, "valid": 1, "test": 2, "0": 0, "1": 1, "2": 2}


def plain(column: str) -> str:
    """A column's name as it is compared."""
    return str(column).lower().replace("_", "").replace("-", "").replace(" ", "")


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

    def column(self, name: str) -> pd.Series:
        """A column of the frame."""
        return self.frame.loc[:, name]

    def place(self, row: int) -> str:
        """Where a row of the frame is in the file: "line 17", "row 15"."""
        return f"{self.unit} {int(self.frame.index[row]) + self.first}"

    def refuse(self, bad: np.ndarray | pd.Series, column: str, problem: str) -> None:
        """Raise for the first row where `bad` holds, if there is one."""
        if (rows := np.flatnonzero(bad)).size:
            value = self.frame[column].iloc[rows[0]]
            more = f" ({rows.size} such rows in all)" if rows.size > 1 else ""
            message = (
                f"{self.file}, column '{column}', {self.place(rows[0])}: {value} {problem}{more}"
            )
            raise RowError(message, self.file, column, self.frame.index[rows])

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
                    f"{self.file}: columns {same} could each be '{name}'; keep one of them"
                )
            if not same and name in required:
                missing.append(f"no column '{name}' (or {', '.join(known[1:])})")
            rename |= dict.fromkeys(same, name)
        if missing:
            one = len(found) == 1 and next((mark for mark in ";|\t," if mark in found[0]), None)
            remedy = "Rename the column that holds it."
            if any(name.replace(".", "", 1).isdecimal() for name in found):
                remedy = "If that is the first row, put a line with the columns' names before it."
            if one:
                remedy = (
                    f"Its fields are separated by {one!r}: write .csv with ',' or .tsv with tabs."
                )
            raise DataError(f"{self.file}: {', '.join(missing)}; found {found}. {remedy}")
        return self._replace(frame=self.frame.rename(columns=rename))


def assemble(
    name: str,
    rows: Table,
    items: Table | None = None,
    users: Table | None = None,
    candidates: Table | None = None,
    *,
    only_seen: bool = False,
) -> Dataset:
    """A Dataset of interactions and, where known, of the items and users they point at.

    `candidates` has a row for each user, with a list of items; ids are those of the interactions.

    With `items` (or `users`) the catalogue is that table and an id outside it is an error; without,
    or with `only_seen`, it is the ids that occur, described where the table does so. Ids become
    ranks, so ids already contiguous from 0 stay what they are. A (user, item) pair repeated at
    other times keeps its earliest row, with a warning.
    """
    rows = rows.renamed(INTERACTIONS, ("user", "item"))
    if rows.frame.empty:
        raise DataError(f"{rows.file}: no interactions; the table has no rows")
    if "timestamp" not in rows.frame and "position" in rows.frame:
        rows = rows._replace(frame=rows.frame.rename(columns={"position": "timestamp"}))
    columns, catalogues, ids = {}, {}, {}
    for column, table, names in (("user", users, USERS), ("item", items, ITEMS)):
        table = table and table.renamed(names, (column,))
        indexed = _indexed(rows, column, table, only_seen)
        columns[column], catalogues[column], ids[column] = indexed
    columns |= {c: convert(rows, c) for c, convert in _CONVERTERS.items() if c in rows.frame}
    interactions = _without_repeats(rows, pd.DataFrame(columns, copy=False))
    lists = None if candidates is None else _lists(candidates, ids)
    return Dataset(name, interactions, catalogues["item"], catalogues["user"], lists)


def _lists(table: Table, ids: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """One row for each user and item of the lists, as indices; a list keeps its order."""
    table = table.renamed(LISTS, tuple(LISTS))
    table.refuse(table.frame["user"].duplicated(), "user", "occurs twice: one list for each user")
    lists = pd.DataFrame(table.frame, columns=list(LISTS))
    table = table._replace(frame=lists.explode("candidates"))
    columns = {}
    for column, name in (("user", "user"), ("candidates", "item")):
        codes, raw = _raw_ids(table, column)
        raw = raw.astype(str) if ids[name].dtype == object else raw
        place = pd.Index(ids[name]).get_indexer(raw)[codes]
        table.refuse(place < 0, column, f"is not among the {len(ids[name])} ids of the data")
        columns[name] = place.astype("int32")
    return pd.DataFrame(columns).drop_duplicates(ignore_index=True)


def _as_numbers(values: pd.Series) -> pd.Series:
    """Numbers, NaN for what is none."""
    return pd.Series(pd.to_numeric(values, errors="coerce"))


def _numbers(table: Table, column: str) -> np.ndarray:
    values = _as_numbers(table.column(column)).to_numpy("float64")
    table.refuse(~np.isfinite(values), column, "is not a finite number")
    return values


def _ratings(table: Table, column: str) -> np.ndarray:
    return _numbers(table, column).astype("float32")


def _domains(table: Table, column: str) -> np.ndarray:
    values = _numbers(table, column)
    table.refuse(~np.isin(values, np.arange(128)), column, "is not a whole number from 0 to 127")
    return values.astype("int8")


def _times(table: Table, column: str) -> np.ndarray:
    """Whole seconds, or any order: int64. Dates are read where they are ISO 8601."""
    values = table.column(column)
    if not pd.api.types.is_datetime64_any_dtype(values):
        numbers = _as_numbers(values)
        if pd.api.types.is_signed_integer_dtype(numbers) and not numbers.isna().any():
            return numbers.to_numpy("int64")
        if numbers.notna().mean() >= 0.5:
            floats = _numbers(table, column)
            parts = "has a fraction: multiply the times, so that all are whole numbers"
            table.refuse(floats % 1 != 0, column, parts)
            table.refuse(np.abs(floats) >= 2.0**63, column, "is outside 64 bits")
            return floats.astype("int64")
    dates = pd.to_datetime(values, format="ISO8601", errors="coerce", utc=True)
    table.refuse(dates.isna(), column, "is neither a number nor an ISO 8601 date")
    micro = (dates - pd.Timestamp(0, tz="UTC")).to_numpy().astype("timedelta64[us]").astype("int64")
    whole = micro % 1_000_000 == 0
    return micro // 1_000_000 if whole.all() else micro


def _splits(table: Table, column: str) -> np.ndarray:
    values = table.column(column)
    coded = isinstance(values.dtype, pd.CategoricalDtype)
    each = pd.Series(values.cat.categories) if coded else values
    parts = each.astype(str).str.removesuffix(".0").map(SPLITS).fillna(-1).to_numpy("int8")
    parts = np.append(parts, np.int8(-1))[values.cat.codes] if coded else parts
    table.refuse(parts < 0, column, "is not a split: use 0 train, 1 valid, 2 test")
    return parts


def _clients(table: Table, column: str) -> np.ndarray:
    """Client ids as ranks; a user belongs to one client."""
    client, *_ = _indexed(table, column)
    user, raw = _distinct(table.column("user"))
    first = np.empty(len(raw), client.dtype)
    first[user[::-1]] = client[::-1]
    table.refuse(client != gather(first, user), column, "is a second client for this row's user")
    return client


_CONVERTERS = {
    "rating": _ratings,
    "timestamp": _times,
    "domain": _domains,
    "client": _clients,
    "split": _splits,
}


def _raw_ids(table: Table, column: str) -> tuple[np.ndarray, np.ndarray]:
    """(code of each row, distinct ids in order). Text that is all whole numbers is integers."""
    values = table.column(column)
    table.refuse(values.isna(), column, "is missing: every row needs an id")
    try:
        codes, raw = _distinct(values)
    except TypeError:  # such as lists in a parquet
        table.refuse(values.map(pd.api.types.is_list_like), column, "is neither text nor number")
        raise
    if not np.issubdtype(raw.dtype, np.number):
        text = pd.Series(raw).astype(str)
        whole = text.str.fullmatch(r"-?(0|[1-9][0-9]{0,17})(\.0+)?").all()
        raw = text.str.split(".").str[0].to_numpy("int64") if whole else text.to_numpy(object)
    if raw.dtype != object:
        refuse = lambda bad, problem: table.refuse(gather(bad, codes), column, problem)
        refuse(raw % 1 != 0, "is not a whole number")
        refuse(raw < 0, "is negative: ids count from 0")
        refuse(raw >= 2.0**63, "is outside 64 bits: write it as text")
        raw = raw.astype("int64")
    ids, rank = np.unique(raw, return_inverse=True)
    return _recoded(codes, rank), ids


def _distinct(values: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """(code of each row, the distinct values); a missing one has code -1."""
    if not isinstance(values.dtype, pd.CategoricalDtype):
        codes, raw = pd.factorize(values)
        return codes, np.asarray(raw)
    codes, number = values.cat.codes.to_numpy(), len(values.cat.categories)
    if not count(codes[codes >= 0], number).all():
        values = values.cat.remove_unused_categories()
    return values.cat.codes.to_numpy(), np.asarray(values.cat.categories)


def _recoded(codes: np.ndarray, to: np.ndarray) -> np.ndarray:
    """`to[codes]`, int32; the codes themselves where `to` leaves them as they are."""
    if np.array_equal(to, np.arange(len(to))):
        return codes.astype("int32", copy=False)
    return gather(to.astype("int32"), codes)


def _indexed(
    table: Table, column: str, catalogue: Table | None = None, only_seen: bool = False
) -> tuple[np.ndarray, pd.DataFrame, np.ndarray]:
    """Each row's index into the catalogue, int32, the catalogue, whose row k is index k, and its
    ids in the file."""
    codes, raw = _raw_ids(table, column)
    described = pd.DataFrame({"raw_id": raw})
    if catalogue is not None:
        known, ids = _raw_ids(catalogue, column)
        catalogue.refuse(pd.Series(known).duplicated(), column, "occurs twice: one row for each id")
        described = catalogue.frame
        if column == "item" and "domain" in described:
            described = described.assign(domain=_domains(catalogue, "domain"))
        described = described.take(np.argsort(known))
        if "raw_id" not in described:
            described = described.assign(raw_id=ids)
        wanted, there = raw, ids
        if raw.dtype != ids.dtype:  # numbers in one table are texts in the other
            wanted, there = raw.astype(str), ids.astype(str)
        place = pd.Index(there).get_indexer(wanted)
        if only_seen:
            if column == "item" and "domain" in described:
                table.refuse(gather(place < 0, codes), column, f"has no domain in {catalogue.file}")
            described = described.reset_index(drop=True).reindex(place).assign(raw_id=raw)
        else:
            outside = f"is not among the {len(ids)} ids of {catalogue.file}"
            table.refuse(gather(place < 0, codes), column, outside)
            codes, raw = _recoded(codes, place), ids
    described = described.reset_index(drop=True)
    described[column] = np.arange(len(described), dtype="int32")
    for text in described.columns.intersection(["title", "text", "category"]):
        described[text] = described[text].astype(object).fillna("").astype(str)
    return codes, described.loc[:, [column, *described.columns.drop(column)]], raw


def _without_repeats(table: Table, interactions: pd.DataFrame) -> pd.DataFrame:
    """One row for each (user, item): the earliest. The same pair at the same time is an error."""
    pair = ["user", "item"]
    timed = [*pair, "timestamp"] if "timestamp" in interactions else pair
    user, item = (interactions[column].to_numpy() for column in pair)
    repeats, involved = np.zeros(len(user), bool), np.zeros(len(user), bool)
    for rows in sorted_blocks(user, int(user.max()) + 1, item):
        same = (np.diff(user[rows]) == 0) & (np.diff(item[rows]) == 0)
        repeats[rows[1:][same]] = involved[rows[:-1][same]] = True
    if not repeats.any():
        return interactions
    involved |= repeats
    several = interactions.loc[involved]
    again = np.zeros(len(user), bool)
    again[involved] = several.duplicated(timed)
    table.refuse(
        again,
        "item",
        "repeats an earlier row: same user, same item, no other time; drop the repeats",
    )
    earliest = several.sort_values("timestamp", kind="stable").drop_duplicates(pair).index
    warn(
        f"{table.file}: {repeats.sum()} rows repeat a (user, item) pair at another time, the first "
        f"in {table.place(int(np.argmax(repeats)))}; the earliest of each pair is kept",
        stacklevel=2,
    )
    kept = ~involved
    kept[earliest] = True
    return interactions.loc[kept].reset_index(drop=True)
