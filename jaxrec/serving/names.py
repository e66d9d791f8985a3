"""Raw ids in and out: which user or item each is, and what to do with ids that nobody knows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd

from jaxrec.data.ids import as_texts, raw_ids, refuse_doubles
from jaxrec.types import DataError, SettingError

Unknown = Literal["error", "skip", "popularity"]


class UnknownIds(DataError):
    """Ids that the run does not know; the message names the first few."""


class Names:
    """The raw ids of a dataset's users or items, looked up as texts."""

    def __init__(self, table: pd.DataFrame, column: Literal["user", "item"]):
        self.column = column
        self.raw = raw_ids(table, column)
        self.index = pd.Index(as_texts(self.raw), dtype=object)

    def places(self, asked: np.ndarray) -> np.ndarray:
        """The index of each id of `asked` [N], int32; -1 for an unknown one.

        Raises DataError where an id of the data is not unique.
        """
        refuse_doubles(self.index, self.column)
        return self.index.get_indexer(as_texts(asked)).astype(np.int32)

    def known(self, asked: np.ndarray) -> np.ndarray:
        """The index of each id of `asked` [N], int32; UnknownIds for others."""
        places = self.places(asked)
        if absent := list(dict.fromkeys(as_texts(asked[places < 0]))):
            first = ", ".join(absent[:5]) + (", ..." if len(absent) > 5 else "")
            raise UnknownIds(
                f"{len(absent):,} of {len(set(as_texts(asked))):,} {self.column}s are not "
                f"among the {len(self.index):,} of the run's data: {first}; leave them out, or "
                "train again on data that have them"
            )
        return places

    def indices(self, asked: np.ndarray, unknown: Unknown) -> np.ndarray:
        """The index of each id of `asked` [N], int32: an unknown one is an error, or has -1."""
        return self.known(asked) if unknown == "error" else self.places(asked)

    def found(self, asked: np.ndarray, unknown: Unknown) -> tuple[np.ndarray, np.ndarray]:
        """The ids [N] as the data have them, and their indices.

        An unknown one is an error, or left out, or has index -1 and the name it was asked for by.
        """
        places = self.indices(asked, unknown)
        if unknown != "popularity":
            places = places[places >= 0]
            return self.raw[places], places
        return np.where(places < 0, asked, self.raw[places].astype(object)), places


def listed(asked: Any, column: str) -> np.ndarray:
    """Ids [N] of one id, a sequence of them, or a frame with a column of that name."""
    if isinstance(asked, pd.DataFrame):
        if column not in asked:
            raise DataError(f"the table has no column '{column}'; it has {list(asked)}")
        asked = asked[column]
    return np.atleast_1d(np.asarray(asked, object))


def check_unknown(unknown: str) -> None:
    """SettingError for a word that says nothing about unknown ids."""
    if unknown not in get_args(Unknown):
        raise SettingError(f"unknown = {unknown!r}: must be error, skip or popularity")


def passing(items: pd.DataFrame, filters: Mapping[str, Any]) -> np.ndarray:
    """The items, bool [I], whose columns have the values asked for: one value or several of each.

    A category is one of the names between the `|` of the column `category`. SettingError for a
    column that the items do not have, and for a value that no item has.
    """
    found = np.ones(len(items), bool)
    for column, wanted in filters.items():
        if column not in items:
            raise SettingError(f"filters: the items have no '{column}'; they have {list(items)}")
        several = list(wanted) if pd.api.types.is_list_like(wanted) else [wanted]
        words = set(as_texts(np.array([*several, None], object)[:-1]))
        texts = as_texts(items[column].to_numpy(object))
        split = (lambda text: text.split("|")) if column == "category" else lambda text: [text]
        if strange := words - {name for text in set(texts) for name in split(text)}:
            raise SettingError(f"filters: no item has {column} = {min(strange)!r}")
        found &= [not words.isdisjoint(split(text)) for text in texts]
    return found
