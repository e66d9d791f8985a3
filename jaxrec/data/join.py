"""Newer interactions joined to a dataset that was split and partitioned before."""

from __future__ import annotations

from dataclasses import replace
from warnings import warn

import numpy as np
import pandas as pd

from jaxrec.data.ids import as_texts, id_index
from jaxrec.data.split import NEW
from jaxrec.types import DataError, Dataset

_NEEDED = ("timestamp", "domain")  # columns that newer rows and items must have where older ones do
_ANOTHER_UNIT = 1e5  # times that are so many times as large are of another unit


def joined(
    old: Dataset, newer: Dataset, min_user: int = 0, min_item: int = 0, *, splits: bool = False
) -> Dataset:
    """`old` with the rows of `newer` behind its own, whose split and client are NEW.

    Users and items of `old` keep their indices and what describes them; new ones follow. Raw ids
    are compared as texts. A pair of user and item that `old` has stays as it is. A new user needs
    `min_user` new rows and one at least, a new item `min_item`. Where it `splits`, the rows of
    `newer` are in the splits that it came with.

    Raises DataError where `newer` knows no item of `old`, has nothing new, lacks a column that is
    needed, or measures time in another unit.
    """
    user = id_index(old.users, "user").get_indexer(id_index(newer.users, "user"))
    item = id_index(old.items, "item").get_indexer(id_index(newer.items, "item"))
    if not (item >= 0).any():
        raise DataError(
            f"{newer.name}: none of its {newer.num_items:,} items is among the {old.num_items:,} "
            "of the run; newer data name items as the run's lists do"
        )
    rows = newer.interactions
    pair = lambda user, item: np.asarray(user, np.int64) * old.num_items + np.asarray(item)
    places = user[rows["user"]], item[rows["item"]]
    known = (places[0] >= 0) & (places[1] >= 0)
    known &= np.isin(pair(*places), pair(old.interactions["user"], old.interactions["item"]))
    rows = _in_core(rows[~known], (user < 0, max(min_user, 1)), (item < 0, min_item))
    if rows.empty:
        raise DataError(f"{newer.name}: nothing is new, in {len(newer.interactions):,} rows")
    comes = (user < 0) & (np.bincount(rows["user"], minlength=len(user)) > 0)
    stocked = (item < 0) & (np.bincount(rows["item"], minlength=len(item)) >= min(min_item, 1))
    user[comes] = old.num_users + np.arange(comes.sum())
    item[stocked] = old.num_items + np.arange(stocked.sum())
    rows = rows.assign(user=user[rows["user"]], item=item[rows["item"]], client=NEW)
    if not splits or "split" not in rows:
        rows = rows.assign(split=NEW)
    _check_times(old.interactions, rows, newer.name)
    return replace(
        old,
        interactions=_longer(old.interactions, rows, newer.name),
        users=_longer(old.users, newer.users[comes], newer.name, "user"),
        items=_longer(old.items, newer.items[stocked], newer.name, "item"),
    )


def _in_core(
    rows: pd.DataFrame, users: tuple[np.ndarray, int], items: tuple[np.ndarray, int]
) -> pd.DataFrame:
    """The rows of known users and items, and of new ones with enough rows among them.

    `users` and `items` say which are new, bool, and how many rows each of these needs.
    """
    while True:
        keep = np.ones(len(rows), bool)
        for column, (new, least) in (("user", users), ("item", items)):
            enough = ~new | (np.bincount(rows[column], minlength=len(new)) >= least)
            keep &= enough[rows[column]]
        if keep.all():
            return rows
        rows = rows[keep]


def _check_times(old: pd.DataFrame, new: pd.DataFrame, name: str) -> None:
    """Refuse times of another unit; warn where no new row is later than all old ones."""
    if "timestamp" not in old or "timestamp" not in new:
        return
    last, newest = (int(rows["timestamp"].max()) for rows in (old, new))
    low, high = sorted((max(abs(last), 1), max(abs(newest), 1)))
    if high > _ANOTHER_UNIT * low:
        raise DataError(
            f"{name}, column 'timestamp': the newest is {newest} and that of the run {last}, in "
            "another unit; write them alike"
        )
    if newest <= last:
        warn(
            f"{name}: no row is later than the last one of the run; a position goes on counting "
            "where the run's ended",
            stacklevel=3,
        )


def _longer(old: pd.DataFrame, new: pd.DataFrame, name: str, column: str = "") -> pd.DataFrame:
    """A table longer by `new`, numbered in `column`; what describes and is not there is missing."""
    if new.empty:
        return old
    if "raw_id" in old and "raw_id" not in new:
        new = new.assign(raw_id=new[column])
    if lacking := [needed for needed in _NEEDED if needed in old and needed not in new]:
        raise DataError(
            f"{name}: no column '{lacking[0]}', which the data of the run have; add it to the "
            f"newer data, which have {list(new)}"
        )
    both = pd.concat([old, new.reindex(columns=list(old))], ignore_index=True)
    for of, kind in old.dtypes.items():
        if of == "raw_id":  # numbers in one, texts in the other
            both[of] = both[of] if kind == new[of].dtype else as_texts(both[of].to_numpy(object))
        elif not pd.api.types.is_numeric_dtype(kind):
            both[of] = both[of].fillna("")
        elif not both[of].isna().any():
            both[of] = both[of].astype(kind)
    return both.assign(**{column: np.arange(len(both), dtype=np.int32)}) if column else both
