"""The command: python -m jaxrec.recommend RUN [--users ids.txt] [--k 20] [--out FILE]."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd
from rich.console import Console
from rich.progress import track

from jaxrec import files
from jaxrec.cli.command import command, one_run
from jaxrec.output import csv_text, to_stdout
from jaxrec.serving.model import Until, open_run
from jaxrec.types import DataError, SettingError

if TYPE_CHECKING:
    import pyarrow as pa

ABOUT = """python -m jaxrec.recommend RUN [--option value ...]

The best items for users, by the run's best state: raw ids and titles, best first. RUN is the folder
of a run, or of one of its baselines (RUN/baselines/NAME)."""
FORMATS = ("csv", "jsonl", "parquet")
LISTS = 1024  # of new users, or of items, that are made at a time
Write = Callable[[str], Any]  # text to where it goes


@dataclass(frozen=True)
class Choice:
    """Options of what is listed and how it is written."""

    k: int = 20
    """Items of a list."""
    allowed: Path | None = None
    """File of raw item ids, one a line: no other item is listed."""
    exclude: Path | None = None
    """File of raw item ids, one a line, that are not listed."""
    filters: tuple[str, ...] = ()
    """COLUMN=VALUE ...: values of the items' columns, such as category=Comedy. A listed item has
    one of the values that are given of each column."""
    unknown: Literal["error", "skip", "popularity"] = "error"
    """What an id that the run does not know gets: an error, no list, or popular items."""
    data: str | None = None
    """Where the data are now, for a run that has not kept them in its folder."""
    format: Literal["csv", "jsonl", "parquet"] | None = None
    """csv, a line an item; jsonl, a line a list; parquet, as csv, a row group a block of lists. By
    default by the name of `out`, else csv."""
    disarm: bool = False
    """csv: put an apostrophe before texts that a spreadsheet would execute, which begin with = + -
    @, a tab or an end of line; numbers stay as they are."""
    out: Path | None = None
    """File to write, whole or not at all; without it, standard output."""

    def __post_init__(self) -> None:
        if self.disarm and self.form != "csv":
            raise SettingError(f"--disarm: is for csv, not for {self.form}; leave it out")
        if self.form == "parquet" and not self.out:
            raise SettingError("format = 'parquet': needs a file, --out lists.parquet")
        _ = self.wanted

    @property
    def form(self) -> str:
        """csv, jsonl or parquet."""
        suffix = self.out.suffix[1:] if self.out else ""
        return self.format or (suffix if suffix in FORMATS else "csv")

    @property
    def wanted(self) -> dict[str, list[str]]:
        """The values of `filters` by column."""
        filters: dict[str, list[str]] = {}
        for word in self.filters:
            column, equals, value = word.partition("=")
            if not (column and equals):
                raise SettingError(f"--filters {word}: is written COLUMN=VALUE")
            filters.setdefault(column, []).append(value)
        return filters

    def listed(self) -> dict[str, Any]:
        """What is listed, as arguments of a `Model`; reads the files."""
        ids = lambda path: None if path is None else read_ids(path)
        chosen = {"allowed": ids(self.allowed), "exclude": ids(self.exclude)}
        return chosen | {"filters": self.wanted, "unknown": self.unknown}


@dataclass(frozen=True)
class Options(Choice):
    """Options of a recommendation."""

    users: Path | None = None
    """File of raw user ids, one a line; without it, all users."""
    items: Path | None = None
    """File of raw item ids, one a line, oldest first: what a new user has, who alone is served."""
    histories: Path | None = None
    """CSV of several new users, columns user and item, oldest first."""
    until: Until = "test"
    """The last split whose rows are known: users are fitted on them, and lists leave them out."""
    include_seen: bool = False
    """Also list what the user has."""
    block: int | None = None
    """Users at a time; by default as many as keep a block's scores below 64 MB."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.items and (self.users or self.histories):
            raise SettingError("--items: serves one new user; leave out --users and --histories")
        if self.histories and self.users:
            raise SettingError("--histories: serves new users; leave out --users")
        if self.block and (self.items or self.histories):
            raise SettingError("--block: is for users of the run; leave it out")


def act(runs: Sequence[Path], options: Options) -> None:
    """Write the lists, a block of users at a time."""
    folder = one_run(runs, "served")
    users = None if options.users is None else read_ids(options.users)
    histories = None if options.histories is None else _read_histories(options.histories)
    histories = read_ids(options.items) if options.items else histories
    chosen: dict[str, Any] = options.listed() | {"exclude_seen": not options.include_seen}
    model = open_run(folder, options.data, until=options.until)
    if histories is not None:
        given = histories if isinstance(histories, dict) else {"new": histories}
        columns = model.columns(options.unknown).astype({"user": object})
        pairs = list(given.items())
        parts = [dict(pairs[at : at + LISTS]) for at in range(0, len(pairs), LISTS)]
        tables = (model.recommend_from_items(part, options.k, **chosen) for part in parts)
        deliver(tables, len(parts), columns, options)
    else:
        chosen |= {"block": options.block}
        number, tables = model.recommend_in_blocks(users, options.k, **chosen)
        deliver(tables, number, model.columns(options.unknown), options)


def deliver(
    tables: Iterable[pd.DataFrame], number: int, columns: pd.DataFrame, options: Choice
) -> None:
    """Write `number` tables where the options say, with a progress bar on a terminal.

    `columns` is a table without a row that has their columns.
    """
    tables = iter(tables)
    first = list(itertools.islice(tables, 1))  # what is wrong is said before anything is written
    tables = itertools.chain(first, tables)
    console = Console(stderr=True)
    hidden = not console.is_terminal or (not options.out and sys.stdout.isatty())
    tables = track(tables, "lists", number, console=console, disable=hidden)
    write = partial(write_csv, columns=columns, disarm=options.disarm)
    write = write_jsonl if options.form == "jsonl" else write
    if not (out := options.out):
        write(to_stdout(), tables)
    elif options.form == "parquet":
        schema = schema_of(columns)
        files.write_atomic(out, lambda beside: write_parquet(beside, tables, schema, out))
    else:

        def write_whole(beside: Path) -> None:
            with beside.open("w", newline="", encoding="utf-8") as file:
                write(file.write, tables)

        files.write_atomic(out, write_whole)


def write_csv(
    write: Write, tables: Iterable[pd.DataFrame], columns: pd.DataFrame, *, disarm: bool = False
) -> None:
    """A header, that of `columns`, and a line an item."""
    for number, table in enumerate(itertools.chain([columns], tables)):
        write(csv_text(table, header=not number, float_format="%.6g", disarm=disarm))


def write_jsonl(write: Write, tables: Iterable[pd.DataFrame]) -> None:
    """A line a list: {"user": ..., "item": [...], "title": [...], "score": [...]}.

    The first column of a table says whose list a row is of.
    """
    for table in tables:
        whose = table.columns[0]
        columns = {name: table[name].tolist() for name in table if name not in (whose, "rank")}
        rows = zip(table[whose].tolist(), *columns.values(), strict=True)
        for owner, group in itertools.groupby(rows, lambda row: row[0]):
            _, *values = zip(*group, strict=True)
            line = {whose: owner} | dict(zip(columns, map(list, values), strict=True))
            write(json.dumps(line, ensure_ascii=False) + "\n")


def schema_of(columns: pd.DataFrame) -> pa.Schema:
    """The schema of a table of lists, from one without a row."""
    import pyarrow as pa

    def kind(column: pd.Series) -> pa.DataType:
        number = pd.api.types.is_numeric_dtype(column)
        return pa.from_numpy_dtype(column.dtype) if number else pa.string()

    return pa.schema([(name, kind(columns[name])) for name in columns])


def write_parquet(
    path: Path, tables: Iterable[pd.DataFrame], schema: pa.Schema, named: Path | None = None
) -> None:
    """A row group a table; errors call the file `named`."""
    import pyarrow as pa
    from pyarrow.parquet import ParquetWriter

    texts = [field.name for field in schema if field.type == pa.string()]
    text = lambda cell: None if pd.isna(cell) else str(cell)
    with files.writing(named or path):
        writer = ParquetWriter(path, schema)
    try:
        for table in tables:
            as_text = {name: table[name].astype(object).map(text) for name in texts}
            rows = pa.Table.from_pandas(table.assign(**as_text), schema, preserve_index=False)
            with files.writing(named or path):
                writer.write_table(rows)
    finally:
        with files.writing(named or path):
            writer.close()


def read_ids(path: Path) -> list[str]:
    """One id a line; blank lines are none."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not text in utf-8 ({error})") from error
    return [line.strip() for line in lines if line.strip()]


def _read_histories(path: Path) -> dict[str, list[str]]:
    """The items of each user in the file's order."""
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
        if not isinstance(table.index, pd.RangeIndex):
            raise ValueError("the lines have more fields than the header")
    except ValueError as error:
        raise DataError(f"{path}: not a CSV ({error})") from error
    table = table.rename(columns=str.strip)
    if not {"user", "item"} <= set(table):
        raise DataError(f"{path}: needs columns user and item; found {list(table)}")
    user, item = (table[column].str.strip() for column in ("user", "item"))
    return item.groupby(user, sort=False).agg(list).to_dict()


def main(words: Sequence[str]) -> int:
    """Do as the words say; returns the exit status."""
    return command(Options, act, words, ABOUT)
