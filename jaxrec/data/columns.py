"""A parquet of many interactions, read in blocks, once, into columns of the cache that are mapped.

The table is never in memory as a whole: it is read for the distinct ids, which are, and again for
the rows, whose ids become int32 codes. What a later run finds in the cache costs it no reading.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from warnings import warn

import numpy as np
import pandas as pd
import pyarrow as pa
from pyarrow import dataset

from jaxrec.data.reading import known_columns
from jaxrec.data.unpack import bound, too_large
from jaxrec.files import cache_folder, sha256, write_folder
from jaxrec.types import DataError

ROWS = 2**21  # a table with no more is read whole
BLOCK = 2**20  # rows that are in memory at once
IDS = ("user", "item", "client", "split")
_VERSION = 1  # of the files in the cache: another number makes every one anew


def opened(path: Path, limit: float) -> dataset.Dataset:
    """A parquet file, or a folder of them; names of folders such as split=train are a column.

    Raises DataError where its rows take more than `limit` (gigabytes; see `unpack.bound`) allows.
    """
    hive = "hive" if path.is_dir() else None  # of the folders below it, not of those above a file
    source = dataset.dataset(path, format="parquet", partitioning=hive)
    metas = [fragment.metadata for fragment in source.get_fragments()]
    groups = [meta.row_group(number) for meta in metas for number in range(meta.num_row_groups)]
    size = sum(max(group.total_byte_size, 8 * group.num_rows) for group in groups)
    most = bound(sum(Path(file).stat().st_size for file in source.files), limit, most=math.inf)
    if size > most:
        raise too_large(path, f"{size / 1e9:.3g} GB", most)
    return source


def mapped(path: Path, source: dataset.Dataset, known: Mapping[str, str]) -> pd.DataFrame | None:
    """The columns of `source`, the parquet at `path`, that are `known`; ids are categories.

    `known` has our name of each. None for a table that is to be read whole: a small one, or one
    with other than numbers and text. The columns lie in the cache folder under a hash of the
    parquet's bytes.

    Raises DataError for a cache that cannot be written; OSError or ValueError for a parquet that
    cannot be read.
    """
    if source.count_rows() <= ROWS:
        return None
    every = {name: _kind(of, source.schema.field(name).type) for name, of in known.items()}
    kinds = {name: kind for name, kind in every.items() if kind is not None}
    if len(kinds) < len(every):
        return None
    usual = known == known_columns(source.schema.names, {})
    folder = cache_folder() / "tables" / _digest(path, source.files, {} if usual else known)
    there = folder.exists()
    frame = _kept(folder)
    if frame is None:
        if there:  # but damaged; one that another process has just written stays
            shutil.rmtree(folder, ignore_errors=True)
        _keep(source, kinds, folder)
        frame = _kept(folder)
        if frame is None:
            raise DataError(f"{folder}: cannot be read once written; remove it and try again")
    return frame


def _kind(name: str, of: pa.DataType) -> str | None:
    real = pa.types.is_float32(of) or pa.types.is_float64(of)  # of 16 bits, arrow cannot sort
    number = pa.types.is_integer(of) or real
    if name in IDS:
        of = of.value_type if pa.types.is_dictionary(of) else of
        text = pa.types.is_string(of) or pa.types.is_large_string(of)
        return "ids" if number or text else None
    date = pa.types.is_timestamp(of) and of.tz is None
    return "numbers" if number or date else None


def _digest(path: Path, files: list[str], own: Mapping[str, str]) -> str:
    digest = hashlib.sha256(f"{_VERSION}".encode())
    digest.update(json.dumps(own).encode() if own else b"")
    for name in files:
        digest.update(f"{os.path.relpath(name, path)}:{sha256(name)};".encode())
    return digest.hexdigest()


def _kept(folder: Path) -> pd.DataFrame | None:
    """The frame of a folder of the cache; None if there is none or it is damaged."""
    if not folder.exists():
        return None
    try:
        index = json.loads((folder / "index.json").read_text())
        columns = {}
        for number, (name, kind, dtype) in enumerate(index["columns"]):
            values = np.load(folder / f"{number}.npy", mmap_mode="r")
            if values.shape != (index["rows"],) or values.dtype != dtype:
                raise ValueError(f"{name}: {values.dtype} {values.shape}")
            if kind == "ids":
                ids = pd.read_parquet(folder / f"{number}.parquet")["id"].to_numpy()
                if not -1 <= values.min() <= values.max() < len(ids):
                    raise ValueError(f"{name}: codes outside its {len(ids)} ids")
                ids = pd.Index(ids, dtype=ids.dtype)
                values = pd.Categorical.from_codes(values, ids, validate=False)
            columns[name] = values
        return pd.DataFrame(columns, copy=False)
    except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
        warn(f"{folder} is damaged ({error}); the table is read again", stacklevel=5)
        return None


def _keep(source: dataset.Dataset, kinds: dict[str, str], folder: Path) -> None:
    try:
        write_folder(folder, lambda part: _write(source, kinds, part))
    except OSError as error:
        if folder.exists():  # another process was faster
            return
        raise DataError(
            f"{folder}: the columns of a large table cannot be kept there ({error}). Make room, or "
            "let JAXREC_CACHE name a folder that has it"
        ) from error


def _write(source: dataset.Dataset, kinds: dict[str, str], folder: Path) -> None:
    ids, missing, rows = _survey(source, kinds)
    dtypes = {}
    for number, (name, kind) in enumerate(kinds.items()):
        of = source.schema.field(name).type
        if kind == "ids":
            dtypes[name] = np.dtype("int32")
            pd.DataFrame({"id": ids[name]}).to_parquet(folder / f"{number}.parquet")
        else:
            real = pa.types.is_integer(of) and missing[name]
            dtypes[name] = np.dtype("float64" if real else of.to_pandas_dtype())
    lookup = {name: pd.Index(values) for name, values in ids.items()}
    with contextlib.ExitStack() as files:
        # Written, not mapped: a full disk is an error here and the end of the process there.
        paths = [folder / f"{number}.npy" for number in range(len(kinds))]
        opened = [files.enter_context(path.open("wb")) for path in paths]
        for file, dtype in zip(opened, dtypes.values(), strict=True):
            header = {"descr": dtype.str, "fortran_order": False, "shape": (rows,)}
            np.lib.format.write_array_header_1_0(file, header)
        for block in _blocks(source, kinds):
            for file, (name, dtype) in zip(opened, dtypes.items(), strict=True):
                column = block[name]
                if kinds[name] == "ids":
                    values = _codes(column, lookup[name])
                else:
                    values = column.to_numpy(zero_copy_only=False)
                file.write(values.astype(dtype, copy=False).tobytes())
    columns = [[name, kind, dtypes[name].str] for name, kind in kinds.items()]
    (folder / "index.json").write_text(json.dumps({"rows": rows, "columns": columns}))


def _codes(column: pa.Array, ids: pd.Index) -> np.ndarray:
    """The place of each row's id among the `ids`; -1 for a missing one."""
    coded = _encoded(column)
    place = ids.get_indexer(coded.dictionary.to_pandas())
    return np.append(place, -1)[coded.indices.fill_null(len(place)).to_numpy()]


def _survey(
    source: dataset.Dataset, kinds: dict[str, str]
) -> tuple[dict[str, np.ndarray], dict[str, int], int]:
    """The distinct ids of each column, sorted; missing values of each column; number of rows."""
    found = {name: [] for name, kind in kinds.items() if kind == "ids"}
    missing, rows = dict.fromkeys(kinds, 0), 0
    for block in _blocks(source, kinds):
        rows += len(block)
        for name in kinds:
            missing[name] += block[name].null_count
        for name, parts in found.items():
            parts.append(_encoded(block[name]).dictionary)
            if sum(map(len, parts)) > 2 * len(parts[0]) + BLOCK:
                found[name] = [_union(parts)]
    return {name: _in_order(_union(parts)) for name, parts in found.items()}, missing, rows


def _blocks(source: dataset.Dataset, kinds: dict[str, str]) -> Iterator[pa.RecordBatch]:
    try:
        yield from source.to_batches(
            columns=list(kinds), batch_size=BLOCK, batch_readahead=1, fragment_readahead=1
        )
    except OSError as error:  # what is left of OSError are the faults of the cache
        raise ValueError(str(error)) from error


def _encoded(column: pa.Array) -> pa.DictionaryArray:
    return column if pa.types.is_dictionary(column.type) else column.dictionary_encode()


def _union(parts: list[pa.Array]) -> pa.Array:
    return pa.chunked_array(parts).unique().drop_null()


def _in_order(ids: pa.Array) -> np.ndarray:
    found = ids.sort().to_numpy(zero_copy_only=False)
    return found[~pd.isna(found)]  # NaN is no null to arrow
