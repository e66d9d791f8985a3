"""Tables of text: their encoding, their line ends, and which line of the file a row begins in."""

from __future__ import annotations

import codecs
import csv
import io
import re
import zipfile
from pathlib import Path

import pandas as pd

from jaxrec.data.reading import Reading
from jaxrec.data.table import Table
from jaxrec.data.unpack import contents, parsing
from jaxrec.types import DataError

_MARKS = {  # the longer ones first: that of UTF-32 begins as that of UTF-16
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def read_text(
    path: Path | zipfile.Path, separator: str, reading: Reading, names: list[str] | None = None
) -> Table:
    """A table of text, as strings. With `names` it is MovieLens's: no header line, ISO 8859-1.

    Commas may stand inside quotes, and so may line ends; tabs may not. Raises DataError, with the
    line, for bytes of another encoding, a row with too many cells and a quote without an end.
    """
    with parsing(path, "a table of text"):
        text = _decoded(path, reading.encoding or ("latin-1" if names else ""), reading)
        if separator == "::":
            text, separator = text.replace("::", "\t"), "\t"
        quoted = separator == ","
        spaced = quoted and re.match(r"[^\n]*, +\S", text) is not None
        how = {"delimiter": separator, "skipinitialspace": spaced}
        try:
            frame = pd.read_csv(
                io.StringIO(text),
                names=names,
                dtype=None if names else str,  # of strings, ids keep their leading zeros
                keep_default_na=False,
                na_values=[""],
                skip_blank_lines=False,
                quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE,
                lineterminator="\n",  # so that a lone carriage return is a letter
                **how,
            )
        except pd.errors.ParserError as error:
            raise DataError(_where(path, str(error), text, how)) from error
        if not isinstance(frame.index, pd.RangeIndex):
            raise ValueError("the lines have more fields than the header")
    first = 1 if names else 2
    rows = text.count("\n") + (not text.endswith("\n")) - first + 1
    if len(frame) != rows and len(lines := _lines(text, how)) == len(frame) + 1:
        frame.index = pd.Index(lines[1:]) - first
    return Table(str(path), frame.dropna(how="all"), first, "line")


def _decoded(path: Path | zipfile.Path, encoding: str, reading: Reading) -> str:
    """The text of a file, lines ended by a line feed, without byte order marks."""
    data = contents(path, reading.unpack_limit)
    marked = next((name for mark, name in _MARKS.items() if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding or marked)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        other = "" if encoding else ", such as --encoding latin-1, cp1252 or gb18030"
        raise DataError(
            f"{path}: cannot be read as a table of text: line {line}, byte {error.start}, "
            f"0x{data[error.start]:02x}, is not {error.encoding}. Name the encoding of the file"
            f"{other}"
        ) from error
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise DataError(
            f"{path}: cannot be read as a table of text: a zero byte is in line {line}. If it is "
            "text of two bytes a letter, name its encoding: --encoding utf-16-le or utf-16-be"
        )
    if "\ufeff" in text:  # also amid a file that was made of several
        text = text.replace("\ufeff", "")
    if "\r" in text:
        text = text.replace("\r\n", "\n")
    return text if "\n" in text else text.replace("\r", "\n")


def _lines(text: str, how: dict) -> list[int]:
    """The line in which each record begins, the header's first; none where they are not told."""
    reader = csv.reader(io.StringIO(text.replace("\r", " "), newline="\n"), **how)
    begins, line = [], 1
    try:
        for _ in reader:
            begins.append(line)
            line = reader.line_num + 1
    except csv.Error:  # such as a cell of more than 128 KB
        return []
    return begins


def _where(path: Path | zipfile.Path, error: str, text: str, how: dict) -> str:
    """What the parser says of a record, said of the line in which it begins."""
    begins = _lines(text, how)
    told = f"{path}: cannot be read as a table of text: "
    if (found := re.search(r"Expected (\d+) fields in line (\d+), saw (\d+)", error)) and begins:
        expected, record, seen = map(int, found.groups())
        return (
            f"{told}line {begins[min(record, len(begins)) - 1]} has {seen} cells and the header "
            f"{expected}. Put a cell with a {how['delimiter']!r} inside in quotes, or use a .tsv"
        )
    if "EOF inside string" in error and begins:
        return f"{told}a quote in line {begins[-1]} has no end. Double a quote that is a letter"
    return f"{told}{error.strip().splitlines()[0]}"
