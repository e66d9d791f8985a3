"""Rows a block at a time: what is sorted or counted takes the memory of a block, not of all rows.

Indexing, counting and sorting in NumPy make 8 bytes and more a row of what takes 4 or 1.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

ROWS = 2**23  # of a block


def slices(number: int) -> Iterator[slice]:
    """Rows 0 to `number`, `ROWS` at a time."""
    return (slice(start, start + ROWS) for start in range(0, number, ROWS))


def gather(table: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """`table[ids]`: values [R] of rows whose ids are int [R]."""
    found = np.empty(len(ids), table.dtype)
    for rows in slices(len(ids)):
        found[rows] = table[ids[rows]]
    return found


def count(ids: np.ndarray, number: int, where: np.ndarray | None = None) -> np.ndarray:
    """How often each id from 0 to `number` occurs in int [R], int64 [number]; of rows `where`."""
    total = np.zeros(number, np.int64)
    for rows in slices(len(ids)):
        own = ids[rows] if where is None else ids[rows][where[rows]]
        total += np.bincount(own, minlength=number)
    return total


def sorted_blocks(
    key: np.ndarray, number: int, by: np.ndarray | None = None, where: np.ndarray | None = None
) -> Iterator[np.ndarray]:
    """The rows sorted by (key, by, row), block after block; a key's rows are in one block.

    Args:
      key: int [R], from 0 to `number`.
      number: of keys.
      by: [R], what the rows of a key are sorted by; without it, they keep their order.
      where: bool [R], the rows that count; all without it.

    Yields:
      Row numbers, int64; no block is empty.
    """
    ends = np.cumsum(count(key, number, where))
    first = done = 0
    while done < (ends[-1] if number else 0):
        last = max(first + 1, int(np.searchsorted(ends, done + ROWS, side="right")))
        inside = (key >= first) & (key < last)
        rows = np.flatnonzero(inside if where is None else inside & where)
        if rows.size:  # a key without rows may stand alone before one with too many
            yield rows[_order(key[rows], None if by is None else by[rows])]
        first, done = last, int(ends[last - 1])


def _order(key: np.ndarray, by: np.ndarray | None) -> np.ndarray:
    """As np.lexsort((by, key)); by one sort where both fit into 64 bits, which rows in order speed.

    Neither may be empty.
    """
    if by is None:
        return np.argsort(key, kind="stable")
    if by.dtype.kind in "iu":
        lowest, span = int(by.min()), int(by.max()) - int(by.min()) + 1
        first = int(key.min())
        if span * (int(key.max()) - first + 1) < 2**63 and abs(lowest) < 2**62:
            both = (key - first).astype(np.int64) * span
            both += by.astype(np.int64) - lowest
            return np.argsort(both, kind="stable")
    return np.lexsort((by, key))
