"""Strings as arrays: utf-8 bytes in rows of fixed width, so that text lives in a state.

A string that does not fit is cut at a character boundary; nothing else changes on the way there
and back, but that half a surrogate pair, which is no character, becomes "?".
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jaxrec.types import Text


def cut(string: str, width: int) -> str:
    """The longest beginning of `string` that fits `width` bytes of utf-8."""
    return string.encode("utf-8", "replace")[:width].decode("utf-8", "ignore")


def pack(strings: Sequence[str], width: int) -> Text:
    """Strings, each cut to `width` bytes -> rows [N, width] and their lengths [N], in NumPy."""
    text = empty((len(strings),), width)
    for row, string in enumerate(strings):
        write(text, row, string)
    return text


def empty(shape: tuple[int, ...], width: int) -> Text:
    """Empty strings in NumPy arrays."""
    return Text(np.zeros((*shape, width), np.uint8), np.zeros(shape, np.int32))


def write(text: Text, at: int | tuple[int, ...], string: str) -> None:
    """Put `string`, cut to fit, at index `at` of `text`, whose arrays are NumPy's."""
    line = text.data[at]
    content = cut(string, len(line)).encode()
    line[:] = 0
    line[: len(content)] = np.frombuffer(content, np.uint8)
    text.length[at] = len(content)


def read(text: Text, at: int | tuple[int, ...]) -> str:
    """The string at index `at`."""
    return bytes(np.asarray(text.data[at])[: int(text.length[at])]).decode()
