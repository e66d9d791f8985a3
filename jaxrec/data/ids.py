"""The ids that a dataset's users and items came with, and how ids are compared."""

from __future__ import annotations

import numpy as np
import pandas as pd

from jaxrec.types import DataError


def raw_ids(table: pd.DataFrame, column: str) -> np.ndarray:
    """The raw ids of a dataset's users or items, in the order of their indices."""
    return table["raw_id" if "raw_id" in table else column].to_numpy()


def id_index(table: pd.DataFrame, column: str) -> pd.Index:
    """The raw ids as they are compared; DataError where two users or items have one."""
    index = pd.Index(as_texts(raw_ids(table, column)), dtype=object)
    refuse_doubles(index, column)
    return index


def refuse_doubles(index: pd.Index, column: str) -> None:
    """DataError where two users or items of the index have one raw id."""
    if not index.is_unique:
        double = index[index.duplicated()][0]
        raise DataError(f"the {column}s, column 'raw_id': {double} is of two {column}s")


def as_texts(ids: np.ndarray) -> list[str]:
    """Ids as they are compared: without spaces around them, a whole number without a fraction."""
    whole = lambda one: isinstance(one, float | np.floating) and float(one).is_integer()
    return [str(int(one)) if whole(one) else str(one).strip() for one in ids.tolist()]
