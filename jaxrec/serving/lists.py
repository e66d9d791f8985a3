"""Lists of the best items of some users, and what none of them may hold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec.ops import ranking
from jaxrec.serving.newcomers import power_of_two

PAIRS = 256  # of a user and an item, at least


def best_items(
    score: Callable, k: int, served: Any, users: jax.Array,
    row: jax.Array, item: jax.Array, closed: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:  # fmt: skip
    """The best items [B, k] of `users` [B], their scores [B, k], whose scores are broken [B].

    Left out are the pairs (row, item), user `row` of the block having `item`, and the items that
    are `closed` [I] to everybody.
    """
    scores = score(served, users).astype(jnp.float32)  # [B, I]
    broken = ~(jnp.max(scores, axis=-1) < jnp.inf)  # max hands NaN on
    excluded = jnp.broadcast_to(closed, scores.shape).at[row, item].set(True, mode="drop")
    chosen = ranking.top(scores, excluded, k)
    return chosen, jnp.take_along_axis(scores, chosen, axis=-1, mode="clip"), broken


class SeenItems:
    """The items of each user, by user, to look up those of a block's users."""

    def __init__(self, rows: np.ndarray, users: int):
        """`rows` int32 [N, 2] are pairs of a user, below `users`, and an item."""
        order = np.argsort(rows[:, 0], kind="stable")
        self.item = rows[order, 1]
        self.start = np.searchsorted(rows[order, 0], np.arange(users + 1))

    @classmethod
    def of(cls, histories: Sequence[np.ndarray]) -> SeenItems:
        """The items of users 0, 1, ... who have these."""
        user = np.repeat(np.arange(len(histories)), [len(items) for items in histories])
        rows = np.stack([user, np.concatenate(histories)], axis=1).astype(np.int32)
        return cls(rows, len(histories))

    def pairs(self, users: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(row, item) of the items of `users` [B]; a user of -1 has none.

        They are padded to a power of four, from 256 up, with a row that is none.
        """
        known = np.maximum(users, 0)
        begin, number = self.start[known], self.start[known + 1] - self.start[known]
        number = np.where(users < 0, 0, number)
        total = int(number.sum())
        length = power_of_two(max(PAIRS, total))
        length *= 2 if length.bit_length() % 2 == 0 else 1
        row = np.full(length, len(users), np.int32)
        item = np.zeros(len(row), np.int32)
        row[:total] = np.repeat(np.arange(len(users)), number)
        within = np.arange(total) - np.repeat(np.cumsum(number) - number, number)
        item[:total] = self.item[np.repeat(begin, number) + within]
        return row, item


class _NothingSeen(SeenItems):
    def __init__(self) -> None:
        pass

    def pairs(self, users: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """No pair."""
        return np.full(1, len(users), np.int32), np.zeros(1, np.int32)


NOTHING_SEEN = _NothingSeen()


class Lists(NamedTuple):
    """What lists are made of: who is asked for, and what none of them may hold."""

    served: Any
    users: np.ndarray  # int32 [N]  as `served` numbers them
    names: np.ndarray  # [N]  what to call them
    seen: SeenItems
    closed: np.ndarray  # bool [I]  items that nobody is to see
