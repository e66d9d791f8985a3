"""One numbering of the items for clients that share no data: a public list of items.

Every party has the same list, and its digest is part of the terms. A client's rows are laid on it
by raw ids, compared as texts; what the list does not know is given back, so that it can be told.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from jaxrec import files
from jaxrec.data.download import fetch
from jaxrec.data.formats import read_items
from jaxrec.data.ids import as_texts, id_index, raw_ids
from jaxrec.data.reading import Reading
from jaxrec.data.tables import list_of_items
from jaxrec.types import DataError, Dataset, SettingError

WEB = ("http://", "https://")
DESCRIBED = ("title", "text", "category", "domain")  # columns that methods read, beside the ids


def read_list(source: str, sha256: str = "", *, progress: bool = True) -> pd.DataFrame:
    """The common list of items, `item` 0 .. I - 1 with `raw_id` and what describes the items.

    Args:
      source: a table of items (docs/data.md), or its URL, from which it is fetched once.
      sha256: of the file. A URL needs it.

    Raises DataError where it cannot be had or is another file, SettingError for a URL without one.
    """
    path = Path(source)
    if source.startswith(WEB):
        if not sha256:
            raise SettingError(f"items = '{source}': a URL needs its file's --items-sha256")
        path = fetch(source, sha256, progress=progress)
    elif sha256 and path.exists() and (found := files.sha256(path)) != sha256:
        raise DataError(f"{path}: sha256 {found} is not the {sha256} that was given")
    return list_of_items(read_items(Reading(items_file=str(path))))


def digest_of(items: pd.DataFrame) -> str:
    """sha256 over a table of items: raw ids and what describes them, in its order."""
    digest = hashlib.sha256()
    columns = {"id": as_texts(raw_ids(items, "item"))}
    text = lambda value: "" if pd.isna(value) else as_texts(np.array([value], object))[0]
    columns |= {name: list(map(text, items[name])) for name in DESCRIBED if name in items}
    for name, values in columns.items():
        for value in (name, str(len(values)), *values):
            told = value.encode()
            digest.update(len(told).to_bytes(8, "little") + told)
    return digest.hexdigest()


def on_catalogue(own: Dataset, items: pd.DataFrame) -> tuple[Dataset, list[str]]:
    """A client's data with the items of the common list in place of its own.

    Args:
      own: as it was read, before any split.
      items: the common list, `item` 0 .. I - 1 with `raw_id` and what describes the items.

    Returns the data, without rows of unknown items and users who have no other rows, and the raw
    ids of the unknown items. Raises DataError where the list knows none of them.
    """
    ids = id_index(own.items, "item")
    place = id_index(items, "item").get_indexer(ids)
    rows = own.interactions
    known = place[rows["item"]] >= 0
    if not known.any():
        raise DataError(
            f"{own.name}: none of its {own.num_items:,} items is among the {len(items):,} of the "
            "federation's list; give the items the ids that the list has"
        )
    kept = np.unique(rows["user"][known])
    number = np.full(own.num_users, -1, np.int32)
    number[kept] = np.arange(len(kept), dtype=np.int32)
    rows = rows[known].reset_index(drop=True)
    rows = rows.assign(user=number[rows["user"]], item=place[rows["item"]].astype(np.int32))
    users = own.users.iloc[kept].reset_index(drop=True).assign(user=np.arange(len(kept)))
    unknown = ids[np.unique(own.interactions["item"][~known])]
    data = replace(own, interactions=rows, items=items, users=users, candidates=None)
    return data, sorted(unknown)
