"""Strings as arrays: utf-8 bytes in rows of fixed size, so that text lives in a state.

A string that does not fit is cut at a character boundary; nothing else changes on the way there
and back, but that half a surrogate pair, which is no character, becomes "?".
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jaxrec.types import Text


def cut(string: str, size: int) -> str:
    """The longest beginning of `string` that fits `size` bytes of utf-8."""
    return string.encode("utf-8", "replace")[:size].decode("utf-8", "ignore")


def pack(strings: Sequence[str], size: int) -> Text:
    """Strings, each cut to `size` bytes -> rows [N, size] and their lengths [N], in NumPy."""
    text = empty((len(strings),), size)
    for row, string in enumerate(strings):
        write(text, row, string)
    return text


def empty(shape: tuple[int, ...], size: int) -> Text:
    """Empty strings in NumPy arrays."""
    data, length = np.zeros((*shape, size), np.uint8), np.zeros(shape, np.int32)
    return Text(data, length)  # pyright: ignore[reportArgumentType]  # NumPy's, to be written to


def write(text: Text, at: int | tuple[int, ...], string: str) -> None:
    """Put `string`, cut to fit, at index `at` of `text`, whose arrays are NumPy's."""
    line = text.data[at]
    content = cut(string, len(line)).encode()
    line[:] = 0
    line[: len(content)] = np.frombuffer(content, np.uint8)
    text.length[at] = len(content)


def string_at(text: Text, at: int | tuple[int, ...]) -> str:
    """The string at index `at` of `text`, whose arrays may be NumPy's or on a device."""
    return bytes(np.asarray(text.data[at])[: int(text.length[at])]).decode()
