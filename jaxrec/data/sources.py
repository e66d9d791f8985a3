"""Where a name leads: synthetic data, a folder under JAXREC_DATA, a path, or a download."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import pandas as pd

from jaxrec.data.download import fetch
from jaxrec.data.formats import check_own_names, name_of, read_items, read_tables
from jaxrec.data.reading import AS_IT_IS, Reading, reading_of
from jaxrec.data.synthetic import synthetic
from jaxrec.data.table import Table, Tables
from jaxrec.data.tables import assemble
from jaxrec.settings.fields import fields
from jaxrec.types import DataError, Dataset, SettingError

_GROUPLENS = "https://files.grouplens.org/datasets/movielens/"
BUILT_IN = {
    "ml-100k": (
        _GROUPLENS + "ml-100k.zip",
        "50d2a982c66986937beb9ffb3aa76efe955bf3d5c6b761f4e3a7cd717c6a3229",
    ),
    "ml-1m": (
        _GROUPLENS + "ml-1m.zip",
        "a6898adb50b9ca05aa231689da44c217cb524e7ebd39d264c56e2832f2c54e20",
    ),
}


def load(
    data: str | Path | pd.DataFrame | Dataset,
    *,
    items: pd.DataFrame | None = None,
    users: pd.DataFrame | None = None,
    unread: Collection[str] = (),
    progress: bool = True,
    **options: Any,
) -> Dataset:
    """Read a dataset by name or path, or from DataFrames.

    A name or path is, in this order: `synthetic`; a folder or file under the folder that
    JAXREC_DATA names; a path (dataset folder, table as .parquet, .csv or .tsv, RecBole .inter,
    MovieLens ml-100k.zip or ml-1m.zip; docs/data.md has all forms); `ml-100k` or `ml-1m`, fetched
    from GroupLens into the cache once. A DataFrame is read as a table of interactions is.

    Args:
      data: the name, the path or the DataFrame. A Dataset is returned as it is.
      items: a DataFrame of items, in place of a table of them.
      users: a DataFrame of users, in place of a table of them.
      unread: `split` or `client`, if nobody reads it: a fault there leaves it out, with a warning.
      progress: show a download's progress.
      **options: of `Reading`: `columns={"user": "Customer ID"}`, `min_rating=4`,
        `duplicates="last"`, `items_file`, `encoding` and `unpack_limit`.

    Raises DataError, with the nearest names and the places looked at, if there is no such thing;
    for bad content, with file, column and row; for a failed download. SettingError for an option
    that is unknown, refused, or of no use with these data.
    """
    reading = reading_of(options)
    if isinstance(data, Dataset) or (isinstance(data, str | Path) and str(data) == "synthetic"):
        _refuse_options(data, reading, items, users)
        return data if isinstance(data, Dataset) else synthetic()
    name, tables = tables_of(data, reading, items=items, users=users, progress=progress)
    return assemble(name, tables, reading, unread)


def tables_of(
    data: str | Path | pd.DataFrame,
    reading: Reading,
    *,
    items: pd.DataFrame | None = None,
    users: pd.DataFrame | None = None,
    progress: bool = True,
) -> tuple[str, Tables]:
    """The name and the tables of a dataset that `load` would make, before they are checked."""
    if items is not None and reading.items_file:
        raise SettingError(f"items_file = {reading.items_file!r}: and a frame of items; give one")
    if isinstance(data, pd.DataFrame):
        name, tables = name_of_data(data), Tables(of_frame(data, "the frame", reading))
    else:
        path, name = located(data, progress=progress)
        tables = read_tables(path, reading)
        if tables.rows.parts and path.is_file():  # one part was named, and all are read
            name = path.resolve().parent.name
    if items is not None or reading.items_file:
        framed = items is not None and of_frame(items, "the frame of items", reading)
        tables = tables._replace(items=framed or read_items(reading), only_seen=False)
    if users is not None:
        tables = tables._replace(users=of_frame(users, "the frame of users", reading))
    check_own_names(tables, reading)
    return name, tables


def given_data(
    data: str | Path | pd.DataFrame | Dataset | None, settings: Mapping[str, Any]
) -> pd.DataFrame | Dataset | None:
    """Data that are given themselves and not by name or path, else None.

    Raises SettingError where `settings` have options of reading and the data are a Dataset.
    """
    if data is None or isinstance(data, str | Path):
        return None
    if isinstance(data, Dataset):
        options = {name: settings[name] for name in fields(Reading) if name in settings}
        _refuse_options(data, reading_of(options))
    return data


def name_of_data(data: str | Path | pd.DataFrame | Dataset) -> str:
    """What the settings of a run call its data."""
    if isinstance(data, Dataset):
        return data.name
    return "DataFrame" if isinstance(data, pd.DataFrame) else str(data)


def of_frame(frame: pd.DataFrame, what: str, reading: Reading) -> Table:
    """A DataFrame as a table; an index with a name is a column, unless that is there already."""
    named = [name for name in frame.index.names if name is not None and name not in frame]
    frame = (frame.reset_index(named) if named else frame).reset_index(drop=True)
    return Table(what, frame.set_axis(list(map(str, frame.columns)), axis=1)).named(
        reading.own_names
    )


def _refuse_options(data: object, reading: Reading, *frames: pd.DataFrame | None) -> None:
    """Options are of no use where nothing is read."""
    what = "a Dataset is read already" if isinstance(data, Dataset) else "nothing is read"
    for name, value in reading.reading().items():
        if value != getattr(AS_IT_IS, name):
            raise SettingError(f"{name} = {value!r}: {what}; leave it out")
    if any(frame is not None for frame in frames):
        raise SettingError(f"items or users: {what}; leave them out")


def located(name_or_path: str | Path, *, progress: bool = True) -> tuple[Path, str]:
    """The folder or file that `load` reads for a name or path, and the dataset's name."""
    wanted = str(name_or_path)
    root = os.environ.get("JAXREC_DATA")
    for place in (*([Path(root)] if root and wanted else []), Path()):
        path = place / Path(wanted).expanduser()
        if wanted and path.exists():
            return path, name_of(path)
    if wanted in BUILT_IN:
        return fetch(*BUILT_IN[wanted], progress=progress), wanted
    known = Path(root).iterdir() if root and Path(root).is_dir() else ()
    folders = [folder.name for folder in known if folder.is_dir()]
    names = sorted({"synthetic", *BUILT_IN, *folders})
    near = get_close_matches(Path(wanted).name, names, cutoff=0.4)
    raise DataError(
        f"no dataset '{wanted}'"
        + (f"; did you mean {' or '.join(near)}?" if near else ".")
        + f" Known names: {', '.join(names)}. Looked in {Path.cwd()} and "
        + (f"JAXREC_DATA={root}" if root else "not in JAXREC_DATA, which is not set")
    )
