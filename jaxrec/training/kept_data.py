"""The data of a run in its own folder: a run serves without the files that it was trained on.

`RUN/data` holds the tables of users, items and interactions as the run split and shared them out,
and the vectors of the items' texts where its methods read them: parquet, npy and JSON.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from warnings import warn

import numpy as np
import pandas as pd
import pyarrow as pa
from pyarrow.parquet import ParquetWriter

from jaxrec import files
from jaxrec.data.blocks import slices
from jaxrec.data.text import ItemText
from jaxrec.training.prepared import Divided, Prepared
from jaxrec.training.progress import say
from jaxrec.training.run_folder import folder_of_run
from jaxrec.types import CheckpointError, Dataset, SettingError

FOLDER = "data"
TABLES = "interactions", "items", "users", "candidates"
INDEX: files.Kinds = {
    "name": str, "tables": list, "text": (dict, type(None)), "split": str, "partition": str,
    "digest": str, "sha256": dict,
}  # fmt: skip
GIGABYTE = 10**9


def keep(run_folder: Path, prepared: Prepared, most: float, *, shown: bool) -> None:
    """Write the data of a run to its folder, unless they are there or would take over `most` GB.

    What they take is bounded by the tables and vectors in memory, and said.
    """
    folder = folder_of_run(run_folder) / FOLDER
    if folder.exists():
        if not (folder / "index.json").exists():
            say(f"{folder}: is there already, and so the data are not kept", shown=shown)
        return
    bound = _bytes(prepared.dataset, prepared.divided.text)
    if bound > most * GIGABYTE:
        say(
            f"the data take up to {bound / GIGABYTE:.3g} GB and are not kept in {folder}: serving "
            f"reads the files that the run was trained on (kept_data = {most:g} GB is the most)",
            shown=shown,
        )
        return
    try:
        with files.writing(folder):
            files.write_folder(folder, lambda part: _write(part, prepared))
    except (OSError, ValueError, TypeError, pa.ArrowException) as error:  # all else is written
        warn(
            f"the data are not kept ({error}): serving reads the files that the run was trained "
            "on; make room, and resume the run to keep them",
            stacklevel=2,
        )
        return
    size = sum(path.stat().st_size for path in folder.iterdir())
    say(f"{folder}: the data that serving reads, {size / 10**6:,.1f} MB", shown=shown)


def must_keep(run_folder: Path, prepared: Prepared, most: float, *, shown: bool) -> None:
    """`keep`, where nothing else could make the data again; SettingError where it is not done."""
    keep(run_folder, prepared, most, shown=shown)
    path = folder_of_run(run_folder) / FOLDER / "index.json"
    kept = path.exists() and files.read_json(path, INDEX)["digest"]
    if kept != prepared.record["data"]["digest"]:
        raise SettingError(
            f"kept_data = {most:g}: a run that goes on from another one must keep its data, and "
            f"{run_folder} does not hold them; raise it, or choose another folder"
        )


def read(run_folder: Path, record: dict[str, Any]) -> Divided | None:
    """The data that a run, or the run whose baseline it is, has kept; None where none are there.

    `record` is the run's config.json. Raises CheckpointError where they are damaged or others, or
    where a run that went on from another one has none.
    """
    folder = folder_of_run(run_folder) / FOLDER
    if not (folder / "index.json").exists():
        if "from" in record:
            raise CheckpointError(
                f"{folder}: is not there, with the rows of {record['from']['run']} and newer ones; "
                "begin the run anew with --from"
            )
        return None
    try:
        index = files.read_json(folder / "index.json", INDEX)
        if harmed := [
            name for name, sha in index["sha256"].items() if files.sha256(folder / name) != sha
        ]:
            raise ValueError(f"{harmed[0]} has changed")
        tables = {name: pd.read_parquet(folder / f"{name}.parquet") for name in index["tables"]}
        text = index["text"] and ItemText(np.load(folder / "text.npy"), **index["text"])
        dataset = Dataset(index["name"], **tables)
    except Exception as error:  # of JSON, numpy and pyarrow, whose types are many
        raise CheckpointError(f"{folder}: damaged ({error}); {_REMEDY}") from error
    if index["digest"] != record["data"]["digest"]:
        raise CheckpointError(f"{folder}: is of another run; {_REMEDY}")
    shares = index["split"], index["partition"]
    return Divided(dataset, *shares, text, digest=index["digest"])


_REMEDY = "remove it and say with --data where the data are that the run was trained on"


def _bytes(dataset: Dataset, text: ItemText | None) -> int:
    """The most bytes that a run's data can take."""
    each = [table for name in TABLES if (table := getattr(dataset, name)) is not None]
    return sum(int(table.memory_usage(deep=True).sum()) for table in each) + (
        text.vectors.nbytes if text else 0
    )


def _write(folder: Path, prepared: Prepared) -> None:
    dataset, how, who, text, *_ = prepared.divided
    tables = [name for name in TABLES if getattr(dataset, name) is not None]
    for name in tables:
        _write_table(folder / f"{name}.parquet", getattr(dataset, name))
    if text:
        np.save(folder / "text.npy", text.vectors, allow_pickle=False)
    told = text and {name: getattr(text, name) for name in ("encoder", "missing", "digest")}
    index: dict[str, Any] = {"name": dataset.name, "tables": tables, "text": told}
    index |= {"split": how, "partition": who, "digest": prepared.record["data"]["digest"]}
    index["sha256"] = {path.name: files.sha256(path) for path in sorted(folder.iterdir())}
    files.write_json(folder / "index.json", index)


def _write_table(path: Path, table: pd.DataFrame) -> None:
    """A parquet, a block of rows at a time: one of mapped columns is never whole in memory."""
    table = table.loc[:, ~table.columns.duplicated()]
    parts = [slice(0)] if table.empty else slices(len(table))
    blocks = (
        pa.Table.from_pandas(_plain(table.iloc[rows]), preserve_index=False) for rows in parts
    )
    first = next(blocks)
    with ParquetWriter(path, first.schema) as writer:
        writer.write_table(first)
        for block in blocks:
            writer.write_table(block.cast(first.schema))


def _plain(table: pd.DataFrame) -> pd.DataFrame:
    """Numbers as they are, all else as texts: a frame of a user's may hold anything."""
    number = lambda column: column.dtype.kind in "biuf" and isinstance(column.dtype, np.dtype)
    text = lambda cell: cell if isinstance(cell, str) else "" if cell is None else str(cell)
    return pd.DataFrame(
        {
            name: table[name] if number(table[name]) else list(map(text, table[name]))
            for name in table
        }
    )
