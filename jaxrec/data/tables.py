"""From tables as they lie in files to a checked Dataset."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from warnings import warn

import numpy as np
import pandas as pd

from jaxrec.data.blocks import gather
from jaxrec.data.cells import CONVERTERS, converted, raw_ids, recoded
from jaxrec.data.reading import AS_IT_IS, INTERACTIONS, ITEMS, LISTS, USERS, Reading
from jaxrec.data.repeats import one_row_a_pair, rated
from jaxrec.data.table import RowError, Table, Tables
from jaxrec.types import DataError, Dataset

_TEXTS = ["title", "text", "category"]
_TOTALS = ("total", "totals", "grand total", "sum")


def assemble(
    name: str, tables: Tables, reading: Reading = AS_IT_IS, unread: Collection[str] = ()
) -> Dataset:
    """A Dataset of interactions and, where known, of the items and users they point at.

    With a table of items (or users) the catalogue is that table and an id outside it is an error;
    without, or with `only_seen`, it is the ids that occur, described where the table does so. Ids
    become ranks, so ids already contiguous from 0 stay what they are.

    A fault in a column that nobody reads is a warning, and the column is left out: the ratings,
    unless `reading` asks for them, the domains, which a method that needs them misses by itself,
    and the columns `unread`.
    """
    rows = tables.rows.renamed(INTERACTIONS, ("user", "item"))
    if rows.frame.empty:
        raise DataError(f"{rows.file}: no interactions; the table has no rows")
    if "timestamp" not in rows.frame and "position" in rows.frame:
        rows = rows._replace(frame=rows.frame.rename(columns={"position": "timestamp"}))
    asked = reading.min_rating is not None
    if asked and "rating" not in rows.frame:
        raise DataError(
            f"{rows.file}: --min-rating {reading.min_rating:g} needs a column 'rating'; found "
            f'{list(map(str, rows.frame))}. Say which it is: --columns rating="Stars"'
        )
    _refuse_total(rows)
    columns, catalogues, ids = {}, {}, {}
    for column, table, names in (("user", tables.users, USERS), ("item", tables.items, ITEMS)):
        table = table and table.renamed(names, (column,))
        indexed = _indexed(rows, column, table, tables.only_seen)
        columns[column], catalogues[column], ids[column] = indexed
    ignored = {"domain", *unread}
    if not asked and reading.duplicates != "sum":
        ignored.add("rating")
    for column in CONVERTERS:
        if column in rows.frame:
            _add(columns, rows, column, column in ignored)
    frame = pd.DataFrame(columns, copy=False)
    interactions = one_row_a_pair(rows, frame, reading.duplicates)
    lists = None if tables.candidates is None else _lists(tables.candidates, ids)
    dataset = Dataset(name, interactions, catalogues["item"], catalogues["user"], lists)
    if reading.min_rating is None:
        return dataset
    whole = {"users": tables.users, "items": None if tables.only_seen else tables.items}
    fixed = {which for which, table in whole.items() if table}
    return rated(dataset, rows.file, reading.min_rating, fixed)


def list_of_items(items: Table) -> pd.DataFrame:
    """The items of a table by index, as a Dataset has them, without a row of interactions."""
    named = items.renamed(ITEMS, ("item",))
    return _indexed(named, "item", named, only_seen=False)[1]


def _add(columns: dict[str, np.ndarray], rows: Table, column: str, unread: bool) -> None:
    """Add a column of the interactions; one with a fault that nobody reads is left out."""
    try:
        columns[column] = converted(rows, column)
    except RowError as error:
        if not unread:
            raise
        _warn_left_out(error)


def _warn_left_out(error: RowError) -> None:
    warn(f"{error}. The column is left out, and what needs it will say so", stacklevel=4)


def _refuse_total(rows: Table) -> None:
    """Refuse a last line of totals, as spreadsheets write it."""
    for column in ("user", "item"):
        cell = rows.frame[column].iloc[-1]
        if rows.unit == "line" and str(cell).strip().rstrip(":").lower() in _TOTALS:
            same = (rows.frame[column] == cell).to_numpy()
            if same.sum() == 1:
                rows.refuse(same, column, "is a line of totals, no interaction. Remove the line")


def _lists(table: Table, ids: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """One row for each user and item of the lists, as indices; a list keeps its order."""
    table = table.renamed(LISTS, tuple(LISTS))
    table.refuse(table.frame["user"].duplicated(), "user", "occurs twice: one list for each user")
    lists = pd.DataFrame(table.frame, columns=list(LISTS))
    table = table._replace(frame=lists.explode("candidates"))
    columns = {}
    for column, name in (("user", "user"), ("candidates", "item")):
        codes, raw = raw_ids(table, column)
        raw = raw.astype(str) if ids[name].dtype == object else raw
        place = pd.Index(ids[name]).get_indexer(raw)[codes]
        table.refuse(place < 0, column, f"is not among the {len(ids[name])} ids of the data")
        columns[name] = place.astype("int32")
    return pd.DataFrame(columns).drop_duplicates(ignore_index=True)


def _indexed(
    table: Table, column: str, catalogue: Table | None, only_seen: bool
) -> tuple[np.ndarray, pd.DataFrame, np.ndarray]:
    """Each row's index into the catalogue, int32, the catalogue, whose row k is index k, and its
    ids in the file."""
    codes, raw = raw_ids(table, column)
    described = pd.DataFrame({"raw_id": raw})
    if catalogue is not None:
        catalogue = _in_one_line(catalogue)
        known, ids = raw_ids(catalogue, column)
        catalogue.refuse(pd.Series(known).duplicated(), column, "occurs twice: one row for each id")
        wanted, there = raw, ids
        if raw.dtype != ids.dtype:  # numbers in one table are texts in the other
            wanted, there = raw.astype(str), ids.astype(str)
        place = pd.Index(there).get_indexer(wanted)
        described = catalogue.frame
        if column == "item" and "domain" in described:
            outside = gather(place < 0, codes) if only_seen else np.zeros(len(codes), bool)
            described = _with_domains(catalogue, table, outside)
        described = described.take(np.argsort(known))
        if "raw_id" not in described:
            described = described.assign(raw_id=ids)
        if only_seen:
            described = described.reset_index(drop=True).reindex(place).assign(raw_id=raw)
        else:
            outside = f"is not among the {len(ids)} ids of {catalogue.file}"
            table.refuse(gather(place < 0, codes), column, outside)
            codes, raw = recoded(codes, place), ids
    described = described.reset_index(drop=True)
    described[column] = np.arange(len(described), dtype="int32")
    for text in described.columns.intersection(_TEXTS):
        described[text] = described[text].astype(object).fillna("").astype(str)
    return codes, described.loc[:, [column, *described.columns.drop(column)]], raw


def _in_one_line(catalogue: Table) -> Table:
    """The catalogue without carriage returns in its texts; each becomes a space."""
    frame = catalogue.frame
    for name in frame.columns.intersection(_TEXTS):
        cells = frame[name].astype(str)
        if (torn := cells.str.contains("\r", regex=False)).any():
            warn(
                f"{catalogue.file}, column '{name}', {catalogue.place(int(np.argmax(torn)))}: a "
                f"carriage return is read as a space ({torn.sum()} such rows in all). Write the "
                f"{name} in one line",
                stacklevel=4,
            )
            one_line = cells.str.replace("\r", " ", regex=False)
            frame = frame.assign(**{name: frame[name].mask(torn, one_line)})
    return catalogue._replace(frame=frame)


def _with_domains(catalogue: Table, rows: Table, outside: np.ndarray) -> pd.DataFrame:
    """The catalogue's frame with its domains as numbers; without them where one has a fault, or
    where there are rows `outside` of the catalogue, whose items have none."""
    try:
        domains = converted(catalogue, "domain")
        rows.refuse(outside, "item", f"has no domain in {catalogue.file}")
    except RowError as error:
        _warn_left_out(error)
        return catalogue.frame.drop(columns="domain")
    return catalogue.frame.assign(domain=domains)
