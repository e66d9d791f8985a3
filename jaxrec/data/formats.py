"""The file formats: dataset folders, tables, RecBole atomic files, the MovieLens releases."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pandas as pd
import pyarrow as pa

from jaxrec.data import columns
from jaxrec.data.tables import ITEMS, Table, assemble
from jaxrec.types import DataError

SUFFIXES = (".parquet", ".csv", ".tsv", ".inter", ".zip")

Found = TypeVar("Found")
Assemble = Callable[..., Found]  # takes what `tables.assemble` takes


def read_dataset(path: Path, name: str, assemble: Assemble[Found] = assemble) -> Found:
    """Read a folder or a file, by what it is, and `assemble` its tables.

    Args:
      path: a dataset folder, a .parquet, .csv, .tsv or .inter file, or a MovieLens .zip.
      name: of the dataset.
      assemble: makes what is returned of the tables of interactions, items, users and candidates.

    Raises DataError for a form that is not known and for anything wrong inside.
    """
    if path.is_dir():
        return _folder(path, name, assemble)
    match path.suffix:
        case ".zip":
            return _zipped(path, name, assemble)
        case ".inter":
            return _atomic(path, name, assemble)
        case ".parquet" | ".csv" | ".tsv":
            return assemble(name, _interactions(path))
    raise DataError(f"{path}: unknown kind of file '{path.suffix}'; known: {', '.join(SUFFIXES)}")


def _folder(folder: Path, name: str, assemble: Assemble[Found]) -> Found:
    if rows := _either(folder, "interactions", _interactions):
        more = (_either(folder, stem, _table) for stem in ("items", "users", "candidates"))
        return assemble(name, rows, *more)
    if inter := sorted(folder.glob("*.inter")):
        if len(inter) > 1:
            raise DataError(f"{folder}: several .inter files {[f.name for f in inter]}; name one")
        return _atomic(inter[0], name, assemble)
    if release := _movielens(folder):
        return assemble(name, *release, only_seen=True)
    held = sorted(f.name for f in folder.iterdir()) or ["nothing"]
    raise DataError(
        f"{folder}: no interactions.parquet or interactions.csv, which make a dataset folder; it "
        f"holds {', '.join(held[:12])}"
    )


def _either(folder: Path, stem: str, open_table: Callable[[Path], Table]) -> Table | None:
    files = [f for s in (".parquet", ".csv") if (f := folder / f"{stem}{s}").exists()]
    if len(files) > 1:
        raise DataError(f"{folder}: both {files[0].name} and {files[1].name}; keep one of them")
    return open_table(files[0]) if files else None


def _interactions(path: Path) -> Table:
    """A table of interactions; one of many rows is mapped from the cache."""
    if path.suffix == ".parquet":
        try:
            frame = columns.mapped(path)
        except DataError:
            raise
        except (OSError, ValueError, pa.ArrowException) as error:
            raise _unreadable(path, "a parquet file", error) from error
        if frame is not None:
            return Table(str(path), frame)
    return _table(path)


def _table(path: Path) -> Table:
    if path.suffix == ".parquet":
        try:
            return Table(str(path), pd.read_parquet(path).reset_index(drop=True))
        except (OSError, ValueError, pa.ArrowException) as error:
            raise _unreadable(path, "a parquet file", error) from error
    return _text(path, "," if path.suffix == ".csv" else "\t")


def _atomic(path: Path, name: str, assemble: Assemble[Found]) -> Found:
    """RecBole: tab-separated, a typed header `user_id:token`; `.item` beside it describes items."""
    rows, items = _text(path, "\t"), None
    if path.with_suffix(".item").exists():
        items = _text(path.with_suffix(".item"), "\t")
        lists = [c for c in items.frame if c.endswith(":token_seq")]
        items = _untyped(items).renamed(ITEMS, ("item",))
        if any(c.removesuffix(":token_seq").lower() in ITEMS["category"] for c in lists):
            items.frame["category"] = items.frame["category"].str.split().str.join("|")
    return assemble(name, _untyped(rows), items, only_seen=True)


def _untyped(table: Table) -> Table:
    plain = [c for c in table.frame if ":" not in c]
    if plain:
        raise DataError(f"{table.file}: header fields {plain} have no type, as in 'user_id:token'")
    return table._replace(frame=table.frame.rename(columns=lambda c: c.rsplit(":", 1)[0]))


def _zipped(path: Path, name: str, assemble: Assemble[Found]) -> Found:
    try:
        with zipfile.ZipFile(path) as archive:
            for folder in (zipfile.Path(archive), *zipfile.Path(archive).iterdir()):
                if release := _movielens(folder):
                    return assemble(name, *release, only_seen=True)
            held = ", ".join(archive.namelist()[:12])
    except (OSError, zipfile.BadZipFile) as error:
        raise _unreadable(path, "a zip archive", error) from error
    raise DataError(
        f"{path}: neither MovieLens 100K (u.data, u.item, u.genre) nor 1M (ratings.dat, "
        f"movies.dat); it holds {held}. Unpack it and name the file of interactions"
    )


def _movielens(folder: Path | zipfile.Path) -> tuple[Table, Table] | None:
    """Interactions and items of the 100K or the 1M release; None if `folder` is neither."""
    ratings = ["user", "item", "rating", "timestamp"]
    if (folder / "ratings.dat").exists() and (folder / "movies.dat").exists():
        items = _text(folder / "movies.dat", "::", ["item", "title", "category"])
        return _text(folder / "ratings.dat", "::", ratings), items
    if not all((folder / f).exists() for f in ("u.data", "u.item", "u.genre")):
        return None
    genres = _text(folder / "u.genre", "|", ["genre", "number"]).frame["genre"].tolist()
    items = _text(folder / "u.item", "|", ["item", "title", "date", "video", "url", *genres])
    flags = items.frame[genres] == 1
    category = flags.apply(lambda row: "|".join(row.index[row]), axis=1)
    described = items.frame[["item", "title"]].assign(category=category)
    return _text(folder / "u.data", "\t", ratings), items._replace(frame=described)


def _text(path: Path | zipfile.Path, separator: str, names: list[str] | None = None) -> Table:
    """A table of text, as strings. With `names` it is MovieLens's: no header line, ISO 8859-1."""
    try:
        text = path.read_bytes().decode("latin-1" if names else "utf-8-sig")
        frame = pd.read_csv(
            io.StringIO(text.replace(separator, "\t") if separator == "::" else text),
            sep="\t" if separator == "::" else separator,
            names=names,
            dtype=None if names else str,  # of strings, ids keep their leading zeros
            keep_default_na=False,
            na_values=[""],
            skip_blank_lines=False,
            quoting=0 if separator == "," else 3,
        )
        if not isinstance(frame.index, pd.RangeIndex):
            raise ValueError("the lines have more fields than the header")
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise _unreadable(path, "a table of text", error) from error
    return Table(str(path), frame.dropna(how="all"), 1 if names else 2, "line")


def _unreadable(path: Path | zipfile.Path, kind: str, error: Exception) -> DataError:
    reason = str(error).strip().split("\n")[0]
    return DataError(f"{path}: cannot be read as {kind} ({reason}). Is it whole? Fetch it again")
