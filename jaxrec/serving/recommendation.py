"""Lists of items for users, from a run: raw ids and titles in and out, block by block.

The device holds what `prepare` serves and the scores of one block of users; the host holds the
lists of one block, unless all are asked for at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from jaxrec.data.pack import pack
from jaxrec.ops import ranking
from jaxrec.training.run import Result, reopen
from jaxrec.types import EVER, Data, DataError, Dataset, SettingError

SCORES = 2**24  # of a block


def recommend(
    run: str | Path | Result,
    users: Sequence[Any] | None = None,
    k: int = 20,
    *,
    exclude_seen: bool = True,
    data: Dataset | None = None,
    block: int | None = None,
) -> pd.DataFrame:
    """The `k` best items of each user, by the state of the run's best round.

    The rows of all splits count, valid and test too: they are left out of the lists, and what a
    method reads when it serves (a history, a client's own rows) has them. What the method learnt in
    training it learnt from the train rows alone; train again to have new rows in that.

    Args:
      run: folder of a run, or of one of its baselines, or what `train` or `reopen` returned.
      users: raw ids, as in the data that were loaded; each is served once. None: all users.
      k: items a user.
      exclude_seen: leave out the items the user has.
      data: the Dataset, where the run in a folder was given one rather than a name.
      block: users at a time; by default as many as keep a block's scores below 64 MB.

    Returns:
      Rows user and item (raw ids), rank (from 1), title (where the data have titles) and score,
      best first. A user with fewer than `k` items left has a shorter list.

    Raises:
      DataError: users that the run does not know; it names the first few.
      SettingError: k or block is out of range; the method cannot score every item.
      CheckpointError: `run` is no run, a damaged one, or one on other data.
      FloatingPointError: a score is NaN or +inf.
    """
    run = run if isinstance(run, Result) else reopen(run, data, progress=False)
    _, tables = recommend_in_blocks(run, users, k, exclude_seen=exclude_seen, block=block)
    return pd.concat(tables, ignore_index=True)


def recommend_in_blocks(
    run: Result,
    users: Sequence[Any] | None = None,
    k: int = 20,
    *,
    exclude_seen: bool = True,
    block: int | None = None,
) -> tuple[int, Iterator[pd.DataFrame]]:
    """The tables of `recommend`, a block of users at a time, and how many blocks there are.

    The arguments and errors are those of `recommend`; what is wrong with the arguments is said at
    once, a broken score when its block is asked for.
    """
    dataset, items = run.dataset, run.sizes.items
    if run.method.rank:
        raise SettingError(
            "this method ranks short lists that it is given and cannot score every item: "
            "there is nothing to recommend from; train another one"
        )
    block = max(1, SCORES // items) if block is None else block
    if k < 1 or block < 1:
        raise SettingError(f"k = {k}, block = {block}: must be from 1 up")
    index = user_indices(dataset, users)
    size = min(block, len(index))
    rows = dataset.interactions[["user", "item"]].to_numpy() if exclude_seen else ()
    seen = _SeenItems(np.asarray(rows, np.int32).reshape(-1, 2), dataset.num_users)
    served = jax.jit(run.method.prepare)(run.state, all_rows(run))
    best = jax.jit(partial(_best_items, run.method.score, k))

    def tables() -> Iterator[pd.DataFrame]:
        for start in range(0, len(index), size):
            own = index[start : start + size]
            asked = np.pad(own, (0, size - len(own)), mode="edge")
            found = jax.device_get(best(served, asked, *seen.pairs(own, size)))
            chosen, scores, broken = (array[: len(own)] for array in found)
            if broken.any():
                name = raw_ids(dataset.users, "user")[own[np.argmax(broken)]]
                raise FloatingPointError(f"scores of user {name} hold NaN or +inf")
            yield _table(dataset, own, chosen, scores)

    return -(-len(index) // size), tables()


def _best_items(
    score: Callable, k: int, served: Any, users: jax.Array, row: jax.Array, item: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The best items [B, k] of `users` [B], their scores [B, k], whose scores are broken [B].

    The pairs (row, item) are left out: user `row` of the block has `item`.
    """
    scores = score(served, users).astype(jnp.float32)  # [B, I]
    broken = ~(jnp.max(scores, axis=-1) < jnp.inf)  # max hands NaN on
    excluded = jnp.zeros(scores.shape, bool).at[row, item].set(True, mode="drop")
    chosen = ranking.top(scores, excluded, k)
    return chosen, jnp.take_along_axis(scores, chosen, axis=-1, mode="clip"), broken


def all_rows(run: Result) -> Data:
    """The run's data with the rows of all splits, in buckets of the same clients."""
    ordered = run.data.history is not None
    data, _ = pack(run.dataset, multiple=run.run.client_devices, before=EVER, by_time=ordered)
    return run.data._replace(clients=data.clients, history=data.history)


def user_indices(dataset: Dataset, users: Sequence[Any] | None) -> np.ndarray:
    """The index of each user, int32 [users]; all users without any.

    Raises DataError for raw ids, numbers or texts, that the dataset does not have.
    """
    if users is None:
        return np.arange(dataset.num_users, dtype=np.int32)
    asked = pd.unique(np.atleast_1d(np.asarray(users, object)).astype(str))
    if not asked.size:
        raise DataError("no user ids given; leave `users` out to serve all users")
    return indices_of(dataset.users, "user", asked)


def indices_of(table: pd.DataFrame, column: str, asked: np.ndarray) -> np.ndarray:
    """The index of each raw id, given as text, in a dataset's table of users or items: int32.

    `column` is "user" or "item". Raises DataError for ids that are not there or not unique.
    """
    names = pd.Index(raw_ids(table, column).astype(str))
    if not names.is_unique:
        double = names[names.duplicated()][0]
        raise DataError(f"the run's {column}s, column 'raw_id': {double} is of two {column}s")
    index = names.get_indexer(asked)
    if (absent := pd.unique(asked[index < 0])).size:
        first = ", ".join(absent[:5]) + (", ..." if absent.size > 5 else "")
        raise DataError(
            f"{absent.size:,} of {len(pd.unique(asked)):,} {column}s are not among the "
            f"{len(names):,} of the run's data: {first}; leave them out, or train again on data "
            "that have them"
        )
    return index.astype(np.int32)


def raw_ids(table: pd.DataFrame, column: str) -> np.ndarray:
    """The raw ids of a dataset's users or items, in the order of their indices."""
    return table["raw_id" if "raw_id" in table else column].to_numpy()


class _SeenItems:
    """The items of each user, by user, to look up those of a block's users."""

    def __init__(self, rows: np.ndarray, users: int):
        order = np.argsort(rows[:, 0], kind="stable")
        self.item = rows[order, 1]
        self.start = np.searchsorted(rows[order, 0], np.arange(users + 1))

    def pairs(self, users: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
        """(row, item) of the items of `users` [B], padded with row `size` to a power of two."""
        begin, number = self.start[users], self.start[users + 1] - self.start[users]
        total = number.sum()
        length = 1 << int(max(total - 1, 0)).bit_length()
        row, item = np.full(length, size, np.int32), np.zeros(length, np.int32)
        row[:total] = np.repeat(np.arange(len(users)), number)
        within = np.arange(total) - np.repeat(np.cumsum(number) - number, number)
        item[:total] = self.item[np.repeat(begin, number) + within]
        return row, item


def _table(
    dataset: Dataset, users: np.ndarray, chosen: np.ndarray, scores: np.ndarray
) -> pd.DataFrame:
    """Rows of lists [B, k], without the places that nothing is left for."""
    real = chosen < dataset.num_items
    row, place = np.nonzero(real)
    item = chosen[real]
    columns = {
        "user": raw_ids(dataset.users, "user")[users[row]],
        "rank": (place + 1).astype(np.int32),
        "item": raw_ids(dataset.items, "item")[item],
    }
    if "title" in dataset.items:
        columns["title"] = dataset.items["title"].to_numpy()[item]
    return pd.DataFrame(columns | {"score": scores[real]})
