"""Files and folders written whole or not at all, strict JSON, tables of JSON lines, the cache.

Everything is written in a new folder beside its final name and moved there, so that no reader and
no killed run ever sees half of it. What a killed process left is removed by the next write to the
same place.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from jaxrec.types import REFUSALS, CheckpointError

try:
    import fcntl
except ImportError:  # Windows has no such locks: what killed processes leave stays there
    fcntl = None

Row = dict[str, Any]

Kinds = Mapping[str, type | tuple[type, ...]]
NUMBER = (int, float)
ROUNDS: Kinds = {"round": int, "seconds": NUMBER}

PART = ".jaxrec-part"  # ends the name of a folder that something is being written in
LOCK = ".jaxrec-lock"  # the file in a folder that says whose it is
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)  # what a disk may lack


def write_atomic(path: Path, write: Callable[[Path], Any]) -> None:
    """Call `write` with a path of the same name elsewhere, then move what it wrote to `path`.

    Threads and processes that write the same path do not disturb each other; the last one wins.
    OSError names `path` where the disk is full.
    """
    with _room_for(path), _workplace(path.parent) as place:
        part = place / path.name
        write(part)
        os.replace(part, path)


@contextlib.contextmanager
def _room_for(path: Path) -> Iterator[None]:
    """What a full disk raises names `path`, not the place beside it that is written in."""
    try:
        yield
    except OSError as error:
        if error.errno in DISK:
            raise _unwritten(path, error) from error
        raise


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Whatever a writer of another library raises in the block becomes an OSError naming `path`.

    orbax, safetensors, faiss and pyarrow are written in C++ and Rust: a full disk is a ValueError,
    a RuntimeError or a type of their own, and a page long.
    """
    try:
        yield
    except REFUSALS:
        raise
    except Exception as error:
        if isinstance(error, OSError) and str(error).startswith(f"{path}: "):
            raise  # was named further in
        raise _unwritten(path, error) from error


def _unwritten(path: Path, error: Exception) -> OSError:
    told, code = str(error), getattr(error, "errno", None)
    for known in DISK:
        if code == known or os.strerror(known) in told:
            code, told = known, f"{os.strerror(known)}; make room, or choose another place"
    lines = told.strip().splitlines() or [type(error).__name__]
    failure = OSError(f"{path}: cannot be written: {lines[0]:.200}")
    failure.errno = code
    return failure


def write_folder(folder: Path, write: Callable[[Path], Any]) -> None:
    """Call `write` with an empty folder, then move it to `folder`, which has to be new.

    Where another process was faster, its folder stays. OSError names `folder` where the disk is
    full.
    """
    with _room_for(folder), _workplace(folder.parent) as place:
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


def read_json(path: Path, kinds: Kinds) -> Row:
    """The object in a file of strict JSON, with values of the `kinds` by name.

    Raises OSError where it cannot be read and CheckpointError where it is damaged.
    """
    text = path.read_bytes()
    try:
        return _object(text, kinds)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: damaged ({error or 'nested too deeply'})") from error


def _object(text: bytes, kinds: Kinds) -> Row:
    """A JSON object with values of the `kinds`; ValueError for anything else."""

    def finite(number: str) -> float:
        if not math.isfinite(value := float(number)):
            raise ValueError(f"{number} is no finite number")
        return value

    found = json.loads(text, parse_constant=finite, parse_float=finite)
    if not isinstance(found, dict):
        raise ValueError(f"a JSON object is wanted, found {found!r:.40}")
    for name, kind in kinds.items():
        if name not in found:
            raise ValueError(f"lacks {name}")
        if not is_a(found[name], kind):
            raise ValueError(f"{name} = {found[name]!r:.40}")
    return found


def is_a(value: Any, kind: type | tuple[type, ...]) -> bool:
    """Whether a value of JSON is of a type; true and false are no numbers."""
    return isinstance(value, kind) and (not isinstance(value, bool) or kind is bool)


def append_row(path: Path, row: Row) -> None:
    """Add one line to a JSONL file."""
    with writing(path), path.open("a") as file:
        file.write(json_line(row) + "\n")


def read_rows(path: Path, needed: Kinds = ROUNDS) -> list[Row]:
    """The rows of a JSONL file, none if it is absent; a last line cut short by a kill is dropped.

    Raises CheckpointError for any other line that is no JSON object or lacks a value of `needed`,
    which gives their types.
    """
    rows: list[Row] = []
    lines = path.read_bytes().splitlines() if path.exists() else []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(_object(line, needed))
        except (ValueError, RecursionError) as error:
            if number == len(lines) and isinstance(error, json.JSONDecodeError):
                break
            raise CheckpointError(f"{path}, line {number}: damaged, {error}") from error
    return rows


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """A whole JSONL file."""
    write_text(path, "".join(json_line(row) + "\n" for row in rows))


def write_users(path: Path, users: pd.DataFrame) -> None:
    """Per-user values as parquet."""
    with writing(path):
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
def in_use(folder: Path) -> Iterator[None]:
    """The folder for this process alone until the block ends; it is made where it is missing.

    What killed processes have left in it goes. The lock is the system's, so it ends with the
    process, however that ends; where the file system has none, nothing is held.

    Raises CheckpointError, naming the owner, where another process has it.
    """
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    lock = _owned(folder)
    try:
        _remove_left(folder.rglob(f"*{PART}"))
        yield
    finally:
        if lock is not None:
            (folder / LOCK).unlink(missing_ok=True)
            os.close(lock)
        if made:
            with contextlib.suppress(OSError):
                folder.rmdir()  # if nothing was written


def _owned(folder: Path) -> int | None:
    """A descriptor that holds the folder's lock file, in which this process is named."""
    path = folder / LOCK
    while fcntl is not None:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(descriptor, 1000).decode(errors="replace") or "another process"
            os.close(descriptor)
            raise CheckpointError(
                f"{folder}: is in use by {owner}; wait until it ends, or choose another folder"
            ) from None
        except OSError:  # the file system has no locks
            os.close(descriptor)
            path.unlink(missing_ok=True)
            return None
        with contextlib.suppress(OSError):  # gone: its owner has just ended and removed it
            if os.path.samestat(os.stat(path), os.fstat(descriptor)):
                since = f"{datetime.now().astimezone():%Y-%m-%d %H:%M:%S %z}"
                owner = f"process {os.getpid()} on {platform.node()} since {since}"
                with contextlib.suppress(OSError):  # a full disk, on which a lock needs no name
                    os.ftruncate(descriptor, 0)
                    os.write(descriptor, owner.encode())
                return descriptor
        os.close(descriptor)
    return None


def _remove_left(folders: Iterable[Path]) -> None:
    """Remove those of the folders being written in whose writers have ended."""
    for left in list(folders):
        if (lock := _locked(left)) is not None:
            shutil.rmtree(left, ignore_errors=True)
            os.close(lock)


@contextlib.contextmanager
def _workplace(parent: Path) -> Iterator[Path]:
    """A new folder in `parent` to write in, gone afterwards; so are those of killed processes."""
    parent.mkdir(parents=True, exist_ok=True)
    _remove_left(parent.glob(f"*{PART}"))
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
