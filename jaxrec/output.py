"""Text for others: CSV that any reader takes, and lines that no terminal obeys."""

from __future__ import annotations

import csv
import re
import sys
from collections.abc import Callable
from typing import Any

import pandas as pd

CONTROLS = {code: 0x2400 + code for code in range(0x20) if chr(code) not in "\t\n"}
CONTROLS |= {0x7F: 0x2421} | dict.fromkeys(range(0x80, 0xA0), 0xFFFD)
EXECUTED = re.compile(r"[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")  # begins a formula, wide forms too
NUMERAL = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def harmless(text: str) -> str:
    """The text with the picture of each control character, such as \u241b, in place of it.

    What begins with an escape is a command to a terminal; tabs and ends of lines stay.
    """
    return text.translate(CONTROLS)


def to_stdout() -> Callable[[str], Any]:
    """Writes text to standard output, `harmless` where that is a terminal."""
    shown = sys.stdout.isatty()
    return lambda text: sys.stdout.write(harmless(text) if shown else text)


def csv_text(
    table: pd.DataFrame,
    *,
    header: bool = True,
    float_format: str | None = None,
    disarm: bool = False,
) -> str:
    """A table as CSV of RFC 4180, but for lines that end in a line feed alone.

    Cells with a comma, a quote or an end of line are quoted. With `disarm` an apostrophe is put
    before cells of text that a spreadsheet would execute: those that begin with = + - @, a tab or
    an end of line and are no number.
    """
    texts = [name for name in table if not pd.api.types.is_numeric_dtype(table[name])]
    if disarm:
        table = table.assign(**{str(name): table[name].map(_disarmed) for name in texts})
    # Python 3.11 quotes no carriage return by itself, which many readers end a line at.
    returns = any(table[name].astype(str).str.contains("\r", regex=False).any() for name in texts)
    quoting = csv.QUOTE_ALL if returns else csv.QUOTE_MINIMAL
    return table.to_csv(
        index=False, header=header, lineterminator="\n", float_format=float_format, quoting=quoting
    )


def _disarmed(cell: Any) -> Any:
    executed = isinstance(cell, str) and EXECUTED.match(cell) and not NUMERAL.fullmatch(cell)
    return f"'{cell}" if executed else cell
