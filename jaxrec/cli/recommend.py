"""The command: python -m jaxrec.recommend RUN [--users ids.txt] [--k 20] [--out FILE]."""

from __future__ import annotations

import csv
import itertools
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TextIO

import pandas as pd
from rich.console import Console
from rich.progress import track

from jaxrec import files
from jaxrec.cli.command import command
from jaxrec.serving.newcomers import newcomers
from jaxrec.serving.recommendation import recommend_in_blocks
from jaxrec.training.run import reopen
from jaxrec.types import DataError, SettingError

ABOUT = """python -m jaxrec.recommend RUN [--option value ...]

The best items for users, by the run's best state: raw ids and titles, best first. RUN is the folder
of a run, or of one of its baselines (RUN/baselines/NAME)."""
FORMATS = ("csv", "jsonl", "parquet")


@dataclass(frozen=True)
class Options:
    """Options of a recommendation."""

    users: Path | None = None
    """File of raw user ids, one a line; without it, all users."""
    items: Path | None = None
    """File of raw item ids, one a line, oldest first: what a new user has, who alone is served."""
    histories: Path | None = None
    """CSV of several new users, columns user and item, oldest first."""
    k: int = 20
    """Items a user."""
    include_seen: bool = False
    """Also list what the user has."""
    format: Literal["csv", "jsonl", "parquet"] | None = None
    """csv, a line an item; jsonl, a line a user; parquet, as csv, a row group a block of users. By
    default by the name of `out`, else csv."""
    out: Path | None = None
    """File to write, whole or not at all; without it, standard output."""
    block: int | None = None
    """Users at a time; by default as many as keep a block's scores below 64 MB."""


def act(runs: Sequence[Path], options: Options) -> None:
    """Write the lists, a block of users at a time."""
    if len(runs) != 1:
        raise SettingError(f"{len(runs)} run folders: one is served at a time")
    suffix = options.out.suffix[1:] if options.out else ""
    form = options.format or (suffix if suffix in FORMATS else "csv")
    if form == "parquet" and not options.out:
        raise SettingError("format = 'parquet': needs a file, --out lists.parquet")
    if options.items and (options.users or options.histories):
        raise SettingError("--items: serves one new user; leave out --users and --histories")
    users = None if options.users is None else _read_ids(options.users)
    histories = None if options.histories is None else _read_histories(options.histories)
    histories = {"new": _read_ids(options.items)} if options.items else histories
    run = reopen(runs[0])
    if histories is not None:
        run = newcomers(run, histories)
    seen = {"exclude_seen": not options.include_seen}
    number, tables = recommend_in_blocks(run, users, options.k, block=options.block, **seen)
    console = Console(stderr=True)
    hidden = not console.is_terminal or (not options.out and sys.stdout.isatty())
    tables = track(tables, "recommending", number, console=console, disable=hidden)
    if form == "parquet" and options.out:
        files.write_atomic(options.out, lambda beside: write_parquet(beside, tables))
    elif options.out:

        def write(beside: Path) -> None:
            with beside.open("w", newline="", encoding="utf-8") as file:
                WRITERS[form](file, tables)

        files.write_atomic(options.out, write)
    else:
        WRITERS[form](sys.stdout, tables)


def write_csv(file: TextIO, tables: Iterable[pd.DataFrame]) -> None:
    """A header and a line an item."""
    for number, table in enumerate(tables):
        table.to_csv(
            file, index=False, header=not number, lineterminator="\n", float_format="%.6g",
            quoting=csv.QUOTE_MINIMAL,
        )  # fmt: skip


def write_jsonl(file: TextIO, tables: Iterable[pd.DataFrame]) -> None:
    """A line a user: {"user": ..., "item": [...], "title": [...], "score": [...]}."""
    for table in tables:
        columns = {name: table[name].tolist() for name in table if name not in ("user", "rank")}
        rows = zip(table["user"].tolist(), *columns.values(), strict=True)
        for user, group in itertools.groupby(rows, lambda row: row[0]):
            _, *values = zip(*group, strict=True)
            line = {"user": user} | dict(zip(columns, map(list, values), strict=True))
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def write_parquet(path: Path, tables: Iterable[pd.DataFrame]) -> None:
    """A row group a table, all of the first one's types."""
    import pyarrow as pa
    from pyarrow.parquet import ParquetWriter

    tables = iter(tables)
    first = pa.Table.from_pandas(next(tables), preserve_index=False)
    with ParquetWriter(path, first.schema) as writer:
        writer.write_table(first)
        for table in tables:
            writer.write_table(pa.Table.from_pandas(table, first.schema, preserve_index=False))


WRITERS = {"csv": write_csv, "jsonl": write_jsonl}


def _read_ids(path: Path) -> list[str]:
    """One id a line; blank lines are none."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not text in utf-8 ({error})") from error
    return [line.strip() for line in lines if line.strip()]


def _read_histories(path: Path) -> dict[str, list[str]]:
    """The items of each user in the file's order."""
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except ValueError as error:
        raise DataError(f"{path}: not a CSV ({error})") from error
    if not {"user", "item"} <= set(table):
        raise DataError(f"{path}: needs columns user and item; found {list(table)}")
    return table.groupby("user", sort=False)["item"].agg(list).to_dict()


def main(words: Sequence[str]) -> int:
    """Do as the words say; returns the exit status."""
    return command(Options, act, words, ABOUT)
