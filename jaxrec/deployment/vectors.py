"""Parts of sums as vectors of integers modulo 2^32, which a secure sum adds.

An integer is a number of the vector. A float is rounded to a multiple of 2^-16 and is three
numbers, sixteen bits in each, so that sums of up to 65,536 parts are exact: whole numbers stay
whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxrec.types import DataError

LIMBS, BITS = 3, 16
UNIT = 2.0**-16
MOST_PARTS = 2 ** (32 - BITS)
LARGEST = 2.0 ** (LIMBS * BITS - 1) * UNIT  # of a sum


def length(shapes: Sequence[Any]) -> int:
    """How many numbers the vector of arrays of such shapes and types has."""
    return sum(int(np.prod(s.shape)) * (1 if _whole(s) else LIMBS) for s in shapes)


def to_vector(parts: Sequence[np.ndarray], addends: int) -> np.ndarray:
    """The vector uint32 [d] of a client's parts, of which so many are added.

    Raises DataError for a part that is not finite or too large, before anything is sent.
    """
    if addends > MOST_PARTS:
        raise DataError(f"{addends:,} clients: a secure sum adds at most {MOST_PARTS:,}")
    words = []
    for part in map(np.asarray, parts):
        if _whole(part):
            words.append(part.astype(np.int32).reshape(-1).view(np.uint32))
            continue
        if not (np.abs(part) < LARGEST / addends).all():  # NaN is not below anything
            raise DataError(  # without the number, which the server must not know
                "a part of a sum holds a number that is not finite or not below "
                f"{LARGEST / addends:,.0f}; where training has diverged, lower the learning rate"
            )
        steps = np.round(part.astype(np.float64).reshape(-1) / UNIT).astype(np.int64)
        limbs = steps[None] >> (BITS * np.arange(LIMBS)[:, None])
        words.append((limbs & (2**BITS - 1)).astype(np.uint32).reshape(-1))
    return np.concatenate(words) if words else np.zeros(0, np.uint32)


def from_vector(total: np.ndarray, shapes: Sequence[Any]) -> list[np.ndarray]:
    """The sums, of such shapes and types, that a sum of vectors uint32 [d] is."""
    found, at = [], 0
    for shape in shapes:
        size = length([shape])
        words, at = total[at : at + size], at + size
        if _whole(shape):
            sums = words.view(np.int32)
        else:
            limbs = words.reshape(LIMBS, -1).astype(np.uint64) << np.uint64(BITS) * np.arange(
                LIMBS, dtype=np.uint64
            ).reshape(-1, 1)
            spare = np.uint64(64 - LIMBS * BITS)  # the sign is the highest of 48 bits
            steps = (limbs.sum(0, dtype=np.uint64) << spare).view(np.int64) >> np.int64(spare)
            sums = steps * UNIT
        found.append(sums.astype(shape.dtype).reshape(shape.shape))
    return found


def added(parts: Sequence[Sequence[np.ndarray]]) -> list[np.ndarray]:
    """The sums of several clients' parts in clear: integers wrap around, floats are added in 64
    bits and in the clients' order."""
    add = lambda each: np.sum(each, 0, dtype=each[0].dtype if _whole(each[0]) else np.float64)
    return [add(each).astype(each[0].dtype) for each in zip(*parts, strict=True)]


def _whole(array: Any) -> bool:
    return np.issubdtype(array.dtype, np.integer)
