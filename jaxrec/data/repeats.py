"""One row for each pair of user and item, and the rows that a rating is high enough for."""

from __future__ import annotations

from dataclasses import replace
from warnings import warn

import numpy as np
import pandas as pd

from jaxrec.data.blocks import sorted_blocks
from jaxrec.data.split import core
from jaxrec.data.table import Table
from jaxrec.types import DataError, Dataset

_PAIR = ["user", "item"]
_CHOOSE = "or say which counts: --duplicates first, last or sum"


def one_row_a_pair(table: Table, interactions: pd.DataFrame, how: str) -> pd.DataFrame:
    """The interactions with one row for each (user, item), by the option `duplicates`.

    `table` has the same rows. Raises DataError for a repeat that `how` makes an error of.
    """
    user, item = (interactions[column].to_numpy() for column in _PAIR)
    repeats, involved = np.zeros(len(user), bool), np.zeros(len(user), bool)
    for rows in sorted_blocks(user, int(user.max()) + 1, item):
        same = (np.diff(user[rows]) == 0) & (np.diff(item[rows]) == 0)
        repeats[rows[1:][same]] = involved[rows[:-1][same]] = True
    if not repeats.any():
        return interactions
    if how == "error":
        again = f"repeats an earlier row: same user, same item; drop the repeats, {_CHOOSE}"
        table.refuse(repeats, "item", again)
    involved |= repeats
    several = interactions.loc[involved]
    if how == "auto":
        _refuse_same_time(table, several, involved)
        warn(
            f"{table.file}: {repeats.sum()} rows repeat a (user, item) pair at another time, the "
            f"first in {table.place(int(np.argmax(repeats)))}; the earliest of each pair is kept",
            stacklevel=2,
        )
    if "timestamp" in several:
        several = several.sort_values("timestamp", kind="stable")
    kept = ~involved
    kept[several.drop_duplicates(_PAIR, keep="last" if how == "last" else "first").index] = True
    if how == "sum":
        interactions = _summed(interactions, several)
    return interactions.loc[kept].reset_index(drop=True)


def _refuse_same_time(table: Table, several: pd.DataFrame, involved: np.ndarray) -> None:
    again = np.zeros(len(involved), bool)
    again[involved] = several.duplicated(_PAIR + ["timestamp"] * ("timestamp" in several))
    problem = "repeats an earlier row: same user, same item, no other time; drop the repeats, "
    table.refuse(again, "item", problem + _CHOOSE)


def _summed(interactions: pd.DataFrame, several: pd.DataFrame) -> pd.DataFrame:
    """The interactions, each rating of a repeated pair the sum over its rows."""
    whole = interactions if "rating" in interactions else interactions.assign(rating=np.float32(1))
    rating = whole["rating"].to_numpy().copy()
    groups = whole.loc[several.index].groupby(_PAIR, sort=False)["rating"]
    rating[several.index] = groups.transform("sum").to_numpy()
    return whole.assign(rating=rating)


def rated(dataset: Dataset, file: str, least: float, tables: set[str]) -> Dataset:
    """The dataset with the rows whose rating is `least` or more.

    Users and items left without a row go, but for those of a catalogue: a table among `tables`.
    Raises DataError where no row is left.
    """
    rows = dataset.interactions
    kept = rows["rating"] >= least
    if not kept.any():
        raise DataError(
            f"{file}, column 'rating': none is {least:g} or more, the highest is "
            f"{rows['rating'].max():g}; set a lower --min-rating"
        )
    rows = rows.loc[kept].reset_index(drop=True)
    bounds = (0 if name in tables else 1 for name in ("users", "items"))
    return core(replace(dataset, interactions=rows), *bounds)
