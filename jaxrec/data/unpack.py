"""The bytes of a file, unpacked where it is compressed, up to a bound; the errors of parsers."""

from __future__ import annotations

import bz2
import gzip
import lzma
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa

from jaxrec.data.reading import shown
from jaxrec.types import DataError, SettingError

MOST = 4_000_000_000  # bytes that a file unpacks to, unless another bound is given
TIMES = 200  # the most that it may grow by: tables of text grow 3 to 30 times
ALWAYS = 100_000_000  # bytes, however small the file
_CHUNK = 2**20

_OPEN: dict[str, Callable[[BinaryIO], Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": lambda file: pa.input_stream(file, compression="zstd"),
}
PACKED = tuple(_OPEN)
_MAGIC = {b"\x1f\x8b": ".gz", b"BZh": ".bz2", b"\xfd7zXZ": ".xz", b"\x28\xb5\x2f\xfd": ".zst"}


@contextmanager
def parsing(path: Path | zipfile.Path, kind: str) -> Iterator[None]:
    """Whatever a parser raises of a damaged file ends as one DataError that names it."""
    try:
        yield
    except (DataError, SettingError):
        raise
    except MemoryError as error:
        raise DataError(f"{path}: there is not memory enough to read it as {kind}") from error
    except Exception as error:  # of zlib, lzma, struct, pyarrow, pandas, ...: each has its own
        reason = shown((str(error).strip() or type(error).__name__).splitlines()[0], 200)
        raise DataError(
            f"{path}: cannot be read as {kind} ({reason}). Is it whole? Fetch it again"
        ) from error


def contents(path: Path | zipfile.Path, limit: float) -> bytes:
    """The bytes of a file, unpacked where its name ends with .gz, .bz2, .xz or .zst.

    Raises DataError for more bytes than `limit` (gigabytes; see `bound`) allows, with no more than
    that many in memory, and for a file that is compressed and does not say so.
    """
    if isinstance(path, zipfile.Path):  # which `admit` has looked at
        return path.read_bytes()
    if path.suffix not in _OPEN:
        data = path.read_bytes()
        for magic, suffix in _MAGIC.items():
            if data.startswith(magic):
                raise DataError(f"{path}: is compressed; let its name end with {suffix}")
        return data
    chunks, size = [], 0
    with path.open("rb") as packed, _OPEN[path.suffix](packed) as stream:
        while chunk := stream.read(_CHUNK):
            size += len(chunk)
            if size > (most := bound(packed.tell(), limit)):  # of what is read so far: ends early
                raise too_large(path, f"{size / 1e9:.3g} GB and more", most)
            chunks.append(chunk)
    return b"".join(chunks)


def bound(packed: int, limit: float, most: float = MOST) -> float:
    """How many bytes a file of `packed` bytes may unpack to: `limit` gigabytes, or, where it is 0,
    the least of `most` and `TIMES` its size, but `ALWAYS` in any case."""
    return limit * 1e9 if limit else min(most, max(ALWAYS, TIMES * packed))


def too_large(path: object, size: str, most: float) -> DataError:
    """An error that names the bound and how to raise it."""
    return DataError(
        f"{path}: unpacks to {size}, above the bound of {most / 1e9:.3g} GB for its bytes. "
        "If you trust it, set --unpack-limit to the gigabytes that you expect"
    )


def admit(archive: zipfile.ZipFile, names: Sequence[str], limit: float) -> None:
    """Refuse entries of a zip archive that cannot be unpacked or are too large, before any is."""
    file = Path(str(archive.filename))
    infos = [archive.getinfo(name) for name in names]
    for info in infos:
        if info.flag_bits & 1:
            raise DataError(
                f"{file}: {info.filename} is encrypted. Unpack it with its password and name the "
                "folder"
            )
        # Of other methods, Python does not bound what a block unpacks to.
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise DataError(
                f"{file}: {info.filename} is compressed by method {info.compress_type} and not by "
                "8, deflate, the usual one. Unpack it and name the folder"
            )
    size, most = sum(info.file_size for info in infos), bound(file.stat().st_size, limit)
    if size > most:
        raise too_large(file, f"{size / 1e9:g} GB", most)
