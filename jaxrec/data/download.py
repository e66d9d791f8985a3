"""Fetch a file once into the cache: whole and checked, or not at all."""

from __future__ import annotations

import hashlib
import urllib.error
import urllib.request
from http.client import HTTPException, IncompleteRead
from pathlib import Path

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from jaxrec import files
from jaxrec.types import DataError

_CHUNK = 1 << 16
_PATIENCE = 30.0  # seconds without a byte


def fetch(url: str, sha256: str, *, progress: bool = True) -> Path:
    """The file at `url`, from the cache or fetched into it.

    Raises DataError, leaving no file behind, for no network, an HTTP error, a cut connection, a web
    page in place of the file and a wrong checksum.
    """
    target = files.cache_folder() / Path(url).name
    if target.exists():
        if (found := files.sha256(target)) != sha256:
            raise DataError(
                f"{target}: sha256 {found} is not the {sha256} of {url}. Remove it to fetch it "
                "again, or load your own file by its path"
            )
        return target
    try:
        files.write_atomic(target, lambda part: _receive(url, part, sha256, progress))
    except (OSError, HTTPException, DataError) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()
        raise DataError(
            f"could not fetch {url}: {_reason(error)}. By hand: download it and put it at {target}"
        ) from error
    return target


def _receive(url: str, path: Path, sha256: str, progress: bool) -> None:
    """Write the body to `path`; raises DataError unless it is all there and is the right one."""
    digest, received = hashlib.sha256(), 0
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        disable=not progress,
        transient=True,
    )
    with urllib.request.urlopen(url, timeout=_PATIENCE) as reply, path.open("wb") as file, bar:
        length = reply.headers.get("Content-Length")
        total = int(length) if length and length.isdigit() else None
        task = bar.add_task(Path(url).name, total=total)
        while block := reply.read(_CHUNK):
            if not received and block.lstrip()[:1] == b"<":
                raise DataError("the server sent a web page instead of the file")
            file.write(block)
            digest.update(block)
            received += len(block)
            bar.update(task, completed=received)
    if total is not None and received < total:
        raise DataError(f"the connection was cut after {received:,} of {total:,} bytes")
    if digest.hexdigest() != sha256:
        raise DataError(f"its sha256 is {digest.hexdigest()} instead of {sha256}")


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"the server answered {error.code} {error.reason}"
    if isinstance(error, urllib.error.URLError):
        return f"no connection ({error.reason})"
    if isinstance(error, IncompleteRead):
        return "the connection was cut"
    return str(error) or type(error).__name__
