"""Files and folders written whole or not at all, strict JSON, tables of JSON lines, the cache.

Everything is written in a new folder beside its final name and moved there, so that no reader and
no killed run ever sees half of it. What a killed process left is removed by the next write to the
same place.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from jaxrec.types import CheckpointError

try:
    import fcntl
except ImportError:  # Windows has no such locks: what killed processes leave stays there
    fcntl = None

Row = dict[str, Any]

PART = ".jaxrec-part"  # ends the name of a folder that something is being written in


def write_atomic(path: Path, write: Callable[[Path], Any]) -> None:
    """Call `write` with a path of the same name elsewhere, then move what it wrote to `path`.

    Threads and processes that write the same path do not disturb each other; the last one wins.
    """
    with _workplace(path.parent) as place:
        part = place / path.name
        write(part)
        os.replace(part, path)


def write_folder(folder: Path, write: Callable[[Path], Any]) -> None:
    """Call `write` with an empty folder, then move it to `folder`, which has to be new.

    Where another process was faster, its folder stays.
    """
    with _workplace(folder.parent) as place:
        part = place / folder.name
        part.mkdir()
        write(part)
        try:
            os.rename(part, folder)
        except OSError:
            if not folder.is_dir():
                raise


def sha256(path: str | Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cache_folder() -> Path:
    """The folder that JAXREC_CACHE names, or ~/.cache/jaxrec."""
    return Path(os.environ.get("JAXREC_CACHE") or "~/.cache/jaxrec").expanduser()


def write_json(path: Path, value: Any) -> None:
    """Strict JSON: a number that is not finite becomes null."""
    write_text(path, json.dumps(_plain(value), indent=1, allow_nan=False) + "\n")


def json_line(value: Any) -> str:
    """Strict JSON in one line."""
    return json.dumps(_plain(value), allow_nan=False)


def write_text(path: Path, text: str) -> None:
    """A page of text."""
    write_atomic(path, lambda part: part.write_text(text, encoding="utf-8"))


def append_row(path: Path, row: Row) -> None:
    """Add one line to a JSONL file."""
    with path.open("a") as file:
        file.write(json_line(row) + "\n")


def read_rows(path: Path, needed: Collection[str] = ("round", "seconds")) -> list[Row]:
    """The rows of a JSONL file, none if it is absent; a last line cut short by a kill is dropped.

    Raises CheckpointError for any other line that is no JSON object or lacks one of `needed`.
    """
    rows: list[Row] = []
    lines = path.read_text().splitlines() if path.exists() else []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except ValueError:
            if number == len(lines):
                break
            row = {}
        row = row if isinstance(row, dict) else {}
        if lacking := set(needed) - set(row):
            raise CheckpointError(f"{path}, line {number}: damaged, lacks {min(lacking)}")
        rows.append(row)
    return rows


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """A whole JSONL file."""
    write_text(path, "".join(json_line(row) + "\n" for row in rows))


def write_users(path: Path, users: pd.DataFrame) -> None:
    """Per-user values as parquet."""
    write_atomic(path, lambda part: users.to_parquet(part, index=False))


def _plain(value: Any) -> Any:
    """Numbers, strings, lists and dicts only."""
    if isinstance(value, Mapping):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


@contextlib.contextmanager
def _workplace(parent: Path) -> Iterator[Path]:
    """A new folder in `parent` to write in, gone afterwards; so are those of killed processes."""
    parent.mkdir(parents=True, exist_ok=True)
    for left in parent.glob(f"*{PART}"):
        if (lock := _locked(left)) is not None:  # whoever wrote there has ended
            shutil.rmtree(left, ignore_errors=True)
            os.close(lock)
    while True:
        place = Path(tempfile.mkdtemp(suffix=PART, prefix=".", dir=parent))
        lock = _locked(place, wait=True)
        if place.exists():
            break
        if lock is not None:  # before it was locked, another process took it for a killed one's
            os.close(lock)
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _locked(folder: Path, *, wait: bool = False) -> int | None:
    """A descriptor that holds the folder's lock until it is closed; None where there is none."""
    if fcntl is None:
        return None
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:  # another process has it, or the file system has no locks
        os.close(descriptor)
        return None
    return descriptor
