"""The cells of a column as arrays: ids, numbers, times, splits, clients."""

from __future__ import annotations

from decimal import Decimal
from uuid import UUID

import numpy as np
import pandas as pd

from jaxrec.data.blocks import count, gather
from jaxrec.data.reading import NAMES, plain, shown
from jaxrec.data.table import RowError, Table

SPLITS = {"train": 0, "valid": 1, "test": 2, "0": 0, "1": 1, "2": 2}
_MISSING = "is missing: every row needs an id. Fill it in, or remove the row, if it is one of sums"
_NO_ID = "is neither text nor number: write ids as text or as whole numbers"
_DECORATION = r":(token|float)(_seq)?$|[-_ ]"  # of a column's name
_WHOLE = r"(0|-?[1-9][0-9]{0,17})(\.0+)?"


def raw_ids(table: Table, column: str) -> tuple[np.ndarray, np.ndarray]:
    """(code of each row, distinct ids in order): int64 where all are whole numbers, else text.

    Spaces around an id are no part of it. Raises DataError for a missing id, for what is no id,
    such as a date or a list, and for a row that repeats the header.
    """
    values = table.column(column)
    table.refuse(values.isna(), column, _MISSING)
    try:
        codes, raw = distinct(values)
    except Exception:  # such as lists in a parquet, of which each library says something else
        table.refuse(~np.array([_is_id(value) for value in values], bool), column, _NO_ID)
        raise
    refuse = lambda bad, problem: table.refuse(gather(np.asarray(bad), codes), column, problem)
    if raw.dtype.kind == "f":
        refuse(raw % 1 != 0, "is not a whole number: write such ids as text")
        lost = "is outside the whole numbers that a float holds to the last digit: write it as text"
        refuse(np.abs(raw) > 2.0**53, lost)
        raw = raw.astype("int64")
    elif raw.dtype.kind in "iu" and not (raw > np.iinfo("int64").max).any():
        raw = raw.astype("int64")
    else:
        if pd.api.types.infer_dtype(raw, skipna=False) != "string":
            refuse([not _is_id(value) for value in raw], _NO_ID)
        text = pd.Series(raw).astype(str).str.strip()
        refuse(text == "", _MISSING)
        if column == "item" or "item" not in table.frame:
            _refuse_headers(table, column, text, codes)
        whole = text.str.fullmatch(_WHOLE).all()
        raw = text.str.split(".").str[0].to_numpy("int64") if whole else text.to_numpy(object)
    ids, rank = np.unique(raw, return_inverse=True)
    return recoded(codes, rank), ids


def distinct(values: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """(code of each row, the distinct values); a missing one has code -1."""
    if not isinstance(values.dtype, pd.CategoricalDtype):
        codes, raw = pd.factorize(values)
        return codes, np.asarray(raw)
    codes, number = values.cat.codes.to_numpy(), len(values.cat.categories)
    if not count(codes[codes >= 0], number).all():
        values = values.cat.remove_unused_categories()
    return values.cat.codes.to_numpy(), np.asarray(values.cat.categories)


def recoded(codes: np.ndarray, to: np.ndarray) -> np.ndarray:
    """`to[codes]`, int32; the codes themselves where `to` leaves them as they are."""
    if np.array_equal(to, np.arange(len(to))):
        return codes.astype("int32", copy=False)
    return gather(to.astype("int32"), codes)


def _is_id(value: object) -> bool:
    if isinstance(value, np.timedelta64):  # which is a np.integer
        return False
    return isinstance(
        value, str | int | float | Decimal | UUID | np.integer | np.floating | np.bool_
    )


def _refuse_headers(table: Table, column: str, ids: pd.Series, codes: np.ndarray) -> None:
    """Refuse rows that hold the columns' names: a header repeated inside the data.

    `ids` are the distinct texts of the column. In a RecBole file, `item_id:token` is a name.
    """
    names = lambda of: {*NAMES[of], plain(table.own.get(of, of))}
    bare = lambda cells: cells.str.replace(_DECORATION, "", regex=True).str.lower()
    among = lambda cells, of: bare(cells).isin(names(of)).to_numpy()
    like = gather(among(ids, column), codes)
    for other in set(NAMES) & set(table.frame) - {column} if like.any() else ():
        at = np.flatnonzero(like)
        like[at] = among(table.column(other).iloc[at].astype(str).str.strip(), other)
    table.refuse(like, column, "is the column's name: the header is there again. Remove the row")


def _as_numbers(values: pd.Series) -> pd.Series:
    """Numbers, NaN for what is none; durations, whose unit is not told, are none at all."""
    if pd.api.types.is_timedelta64_dtype(values):
        raise TypeError("they are durations")
    return pd.Series(pd.to_numeric(values, errors="coerce"))


def _numbers(table: Table, column: str) -> np.ndarray:
    values = _as_numbers(table.column(column)).to_numpy("float64", na_value=np.nan)
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
        if pd.api.types.is_string_dtype(values):
            values = values.str.strip()
    dates = pd.to_datetime(values, format="ISO8601", errors="coerce", utc=True)
    table.refuse(dates.isna(), column, "is neither a number nor an ISO 8601 date")
    micro = (dates - pd.Timestamp(0, tz="UTC")).to_numpy().astype("timedelta64[us]").astype("int64")
    whole = micro % 1_000_000 == 0
    return micro // 1_000_000 if whole.all() else micro


def _splits(table: Table, column: str) -> np.ndarray:
    values = table.column(column)
    coded = isinstance(values.dtype, pd.CategoricalDtype)
    each = pd.Series(values.cat.categories) if coded else values
    names = each.astype(str).str.strip().str.removesuffix(".0")
    parts = names.map(SPLITS).fillna(-1).to_numpy("int8")
    parts = np.append(parts, np.int8(-1))[values.cat.codes] if coded else parts
    table.refuse(parts < 0, column, "is not a split: use 0 train, 1 valid, 2 test")
    return parts


def _clients(table: Table, column: str) -> np.ndarray:
    """Client ids as ranks; a user belongs to one client."""
    client, _ = raw_ids(table, column)
    user, raw = raw_ids(table, "user")
    first = np.empty(len(raw), client.dtype)
    first[user[::-1]] = client[::-1]
    table.refuse(client != gather(first, user), column, "is a second client for this row's user")
    return client


CONVERTERS = {
    "rating": _ratings,
    "timestamp": _times,
    "domain": _domains,
    "client": _clients,
    "split": _splits,
}


def converted(table: Table, column: str) -> np.ndarray:
    """A column other than an id as what its name says; DataError for the first bad cell."""
    try:
        return CONVERTERS[column](table, column)
    except RowError:
        raise
    except (TypeError, ValueError, NotImplementedError) as error:  # lists, bytes, durations, ...
        message = (
            f"{table.file}, column '{column}': its cells are neither text nor numbers "
            f"({shown(str(error).strip(), 200)}). Write them as plain numbers or text"
        )
        raise RowError(message, table.file, column, table.frame.index) from error
