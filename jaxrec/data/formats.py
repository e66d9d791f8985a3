"""The file formats: dataset folders, tables, RecBole atomic files, the MovieLens releases."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from warnings import warn

import pandas as pd
import pyarrow as pa

from jaxrec.data import columns
from jaxrec.data.delimited import read_text
from jaxrec.data.reading import INTERACTIONS, ITEMS, Reading, known_columns, shown
from jaxrec.data.table import Table, Tables, joined
from jaxrec.data.unpack import PACKED, admit, parsing
from jaxrec.types import TEST, TRAIN, VALID, DataError

_SEPARATORS = {".csv": ",", ".tsv": "\t", ".inter": "\t", ".item": "\t"}
FORMS = (".parquet", *_SEPARATORS)
_PART = re.compile(r"(?:(.*)[._-])?(train|training|valid|validation|val|dev|test)", re.IGNORECASE)
_PARTS = {"tr": TRAIN, "va": VALID, "de": VALID, "te": TEST}  # by how a part's word begins


def read_tables(path: Path, reading: Reading) -> Tables:
    """Read a folder or a file, by what it is.

    Args:
      path: a dataset folder, a table (.parquet, which may be a folder of parts, .csv or .tsv), a
        RecBole .inter file, or a MovieLens .zip. Text may be compressed: .csv.gz.
      reading: how; that it names a table of items is left to the caller.

    Raises DataError for a form that is not known and for anything wrong inside.
    """
    form = form_of(path)
    if path.is_dir() and form != ".parquet":
        return _folder(path, reading)
    if form == ".zip":
        return _zipped(path, reading)
    if form not in FORMS:
        known = ", ".join((*FORMS[:-1], ".zip"))
        more = f"known: {known}; those of text also with {', '.join(PACKED)} after it"
        raise DataError(f"{path}: unknown kind of file '{form or path.suffix}'; {more}")
    named = _split_files(path.parent) if _PART.fullmatch(_base(path)) else ()
    if parts := next((own for own in named if path in own), None):
        together = ", ".join(part.name for part in sorted(parts, key=_part_of))
        warn(
            f"{path} is one part of data that are split already: {together} are read together. "
            "Copy it elsewhere to split it anew",
            stacklevel=4,
        )
        return _split(parts, reading)
    return _atomic(path, reading) if form == ".inter" else Tables(_interactions(path, reading))


def check_own_names(tables: Tables, reading: Reading) -> None:
    """Refuse a name of a column that no table has."""
    there = [table for table in tables[:4] if table]
    for name, theirs in reading.own_names.items():
        if not any(name in table.own for table in there):
            rows = tables.rows
            raise DataError(
                f'--columns {name}="{theirs}": no table has that column; {rows.file} has '
                f"{shown(list(map(str, rows.frame.columns)), 800)}"
            )


def form_of(path: Path) -> str:
    """How the name of a table ends, without the compression: .csv of ratings.csv.gz."""
    name = path.with_suffix("") if path.suffix in PACKED else path
    return name.suffix


def _base(path: Path) -> str:
    """The name of a table without its form and compression."""
    packed = path.suffix if path.suffix in PACKED else ""
    return path.name.removesuffix(packed).removesuffix(form_of(path))


def name_of(path: Path) -> str:
    """The name of the data set in a file or folder: ratings of ratings.csv.gz."""
    path = path.resolve()
    if path.is_dir() and form_of(path) not in FORMS:
        return path.name
    return (path.with_suffix("") if path.suffix in PACKED else path).stem


def _folder(folder: Path, reading: Reading) -> Tables:
    if rows := _either(folder, "interactions", reading, _interactions):
        return _beside(folder, rows, reading)
    if len(split := _split_files(folder)) > 1:
        names = [part.name for parts in split for part in parts]
        raise DataError(f"{folder}: several data sets, each in parts, {names}; name a part of one")
    inter = sorted(f for f in folder.iterdir() if form_of(f) == ".inter")
    if split and {*inter} <= {*split[0]}:
        return _split(split[0], reading)
    if inter:
        if len(inter) > 1:
            raise DataError(f"{folder}: several .inter files {[f.name for f in inter]}; name one")
        return _atomic(inter[0], reading)
    if release := _movielens(folder, reading):
        return Tables(*release, only_seen=True)
    shards = [*folder.glob("*.parquet"), *folder.glob("*=*/**/*.parquet")]
    if shards and not any(re.match(r"(train|valid|test)", f.name) for f in shards):
        return Tables(_interactions(folder, reading))
    held = sorted(f.name for f in folder.iterdir()) or ["nothing"]
    raise DataError(
        f"{folder}: no interactions.parquet or interactions.csv, which make a dataset folder; it "
        f"holds {', '.join(held[:12])}"
    )


def _beside(folder: Path, rows: Table, reading: Reading) -> Tables:
    """The interactions with the tables of items, users and candidates of a folder."""
    items = None if reading.items_file else _either(folder, "items", reading, _table)
    users, lists = (_either(folder, stem, reading, _table) for stem in ("users", "candidates"))
    return Tables(rows, items, users, lists)


def _either(
    folder: Path, stem: str, reading: Reading, read: Callable[[Path, Reading], Table]
) -> Table | None:
    """The table of that name; a compressed one, which may be a copy, only where no other is."""
    packed = [form + suffix for suffix in PACKED for form in (".csv", ".tsv")]
    there = lambda forms: [file for form in forms if (file := folder / f"{stem}{form}").exists()]
    files = there((".parquet", ".csv")) or there((".tsv",)) or there(packed)
    if len(files) > 1:
        raise DataError(f"{folder}: both {files[0].name} and {files[1].name}; keep one of them")
    return read(files[0], reading) if files else None


def _split_files(folder: Path) -> list[list[Path]]:
    """The files of each split that a folder holds in parts: train, and valid, test or both.

    Those of one split share all of their names but a last word: ml.train.inter and ml.test.inter,
    or train.csv and test.csv.
    """
    groups: dict[tuple[str, str], list[Path]] = {}
    for path in sorted(folder.iterdir()):
        if form_of(path) in FORMS and (found := _PART.fullmatch(_base(path))):
            groups.setdefault((found[1] or "", form_of(path)), []).append(path)
    return [group for group in groups.values() if {TRAIN} < {*map(_part_of, group)}]


def _part_of(path: Path) -> int:
    """The split that a file is a part of, by the last word of its name."""
    found = _PART.fullmatch(_base(path))
    assert found
    return _PARTS[found[2][:2].lower()]


def _split(files: list[Path], reading: Reading) -> Tables:
    """The parts of a split as one table, and what describes its items and users."""
    folder, atomic = files[0].parent, form_of(files[0]) == ".inter"
    parts: dict[int, Table] = {}
    for path in sorted(files, key=_part_of):
        if (part := _part_of(path)) in parts:
            raise DataError(f"{folder}: {[f.name for f in files]} have one part twice; keep one")
        table = _untyped(_text(path, reading), reading) if atomic else _table(path, reading)
        parts[part] = table.renamed(INTERACTIONS, ("user", "item"))
    rows = joined(parts, str(folder))
    if not atomic:
        return _beside(folder, rows, reading)
    stem = _PART.sub(lambda found: found[1] or "", _base(files[0]))
    return Tables(rows, _atomic_items(folder, stem, reading), only_seen=True)


def _interactions(path: Path, reading: Reading) -> Table:
    """A table of interactions; one of many rows is mapped from the cache."""
    if form_of(path) in _SEPARATORS:
        return _table(path, reading)
    own = reading.own_names
    with parsing(path, "a parquet file"):
        source = columns.opened(path, reading.unpack_limit)
        every = pd.DataFrame(columns=source.schema.names)
        Table(str(path), every).named(own).renamed(INTERACTIONS, ("user", "item"))
        known = known_columns(source.schema.names, own)
        frame = columns.mapped(path, source, known)
        if frame is None:
            frame = _whole(path, list(known))
    return Table(str(path), frame).named(own)


def _table(path: Path, reading: Reading) -> Table:
    if form_of(path) in _SEPARATORS:
        return _text(path, reading).named(reading.own_names)
    with parsing(path, "a parquet file"):
        columns.opened(path, reading.unpack_limit)
        frame = _whole(path)
    return Table(str(path), frame).named(reading.own_names)


def _whole(path: Path, names: list[str] | None = None) -> pd.DataFrame:
    """The columns of a parquet file or folder; ValueError for text that is no UTF-8."""
    frame = pd.read_parquet(path, columns=names).reset_index(drop=True)
    for _, cells in frame.items():
        values = cells.cat.categories if isinstance(cells.dtype, pd.CategoricalDtype) else cells
        if isinstance(values.dtype, pd.StringDtype):  # bytes of the file, not looked at so far
            pa.array(values).validate(full=True)
    return frame


def read_items(reading: Reading) -> Table:
    """The table of items that `items_file` names."""
    path = Path(reading.items_file)
    if not path.exists() or form_of(path) not in FORMS:
        raise DataError(f"{path}: is no table of items; --items-file needs one of {FORMS}")
    return _described(path, reading) if form_of(path) == ".item" else _table(path, reading)


def _text(path: Path, reading: Reading) -> Table:
    return read_text(path, _SEPARATORS[form_of(path)], reading)


def _atomic(path: Path, reading: Reading) -> Tables:
    """RecBole: tab-separated, a typed header `user_id:token`; `.item` beside it describes items."""
    rows = _untyped(_text(path, reading), reading)
    return Tables(rows, _atomic_items(path.parent, _base(path), reading), only_seen=True)


def _atomic_items(folder: Path, stem: str, reading: Reading) -> Table | None:
    files = [folder / f"{stem}.item{packed}" for packed in ("", *PACKED)]
    there = [] if reading.items_file else [file for file in files if file.exists()]
    return _described(there[0], reading) if there else None


def _described(path: Path, reading: Reading) -> Table:
    """A RecBole table of items; its categories are separated by spaces."""
    items = _text(path, reading)
    lists = [c for c in items.frame if c.endswith(":token_seq")]
    items = _untyped(items, reading).renamed(ITEMS, ("item",))
    names = {*ITEMS["category"], items.own.get("category", "category").lower()}
    if any(c.removesuffix(":token_seq").lower() in names for c in lists):
        items.frame["category"] = items.frame["category"].str.split().str.join("|")
    return items


def _untyped(table: Table, reading: Reading) -> Table:
    plain = [c for c in table.frame if ":" not in c]
    if plain:
        raise DataError(f"{table.file}: header fields {plain} have no type, as in 'user_id:token'")
    frame = table.frame.rename(columns=lambda c: c.rsplit(":", 1)[0])
    return table._replace(frame=frame).named(reading.own_names)


def _zipped(path: Path, reading: Reading) -> Tables:
    with parsing(path, "a zip archive"), zipfile.ZipFile(path) as archive:
        for folder in (zipfile.Path(archive), *zipfile.Path(archive).iterdir()):
            if release := _movielens(folder, reading):
                return Tables(*release, only_seen=True)
        held = ", ".join(archive.namelist()[:12])
    raise DataError(
        f"{path}: neither MovieLens 100K (u.data, u.item, u.genre) nor 1M (ratings.dat, "
        f"movies.dat); it holds {held}. Unpack it and name the file of interactions"
    )


def _movielens(folder: Path | zipfile.Path, reading: Reading) -> tuple[Table, Table] | None:
    """Interactions and items of the 100K or the 1M release; None if `folder` is neither."""
    forms = ("ratings.dat", "movies.dat"), ("u.data", "u.item", "u.genre")
    each = ([folder / name for name in names] for names in forms)
    files = next((files for files in each if all(file.exists() for file in files)), None)
    if files is None:
        return None
    if isinstance(folder, zipfile.Path):
        admit(folder.root, [folder.at + file.name for file in files], reading.unpack_limit)
    ratings = ["user", "item", "rating", "timestamp"]
    if len(files) == 2:
        items = read_text(files[1], "::", reading, ["item", "title", "category"])
        return read_text(files[0], "::", reading, ratings), items
    genres = read_text(files[2], "|", reading, ["genre", "number"]).frame["genre"].tolist()
    items = read_text(files[1], "|", reading, ["item", "title", "date", "video", "url", *genres])
    flags = items.frame[genres] == 1
    category = flags.apply(lambda row: "|".join(row.index[row]), axis=1)
    described = items.frame[["item", "title"]].assign(category=category)
    return read_text(files[0], "\t", reading, ratings), items._replace(frame=described)
