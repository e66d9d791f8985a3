"""From rows to arrays: clients sorted by size, in buckets padded to one length each."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from jaxrec.data.blocks import count, gather, slices, sorted_blocks
from jaxrec.data.buckets import best_lengths
from jaxrec.types import VALID, Clients, Data, DataError, Dataset, History, Sizes


def pack(
    dataset: Dataset,
    *,
    multiple: int = 1,
    before: int = VALID,
    by_time: bool = True,
    lengths: Sequence[int] | None = None,
) -> tuple[Data, Sizes]:
    """The train rows as buckets of Clients, smallest first, and the static sizes.

    A bucket holds the clients whose train rows fit its length N and not a shorter one, in order of
    (size, id); its U is its largest number of users. `lengths` are ascending, by default those of
    `best_lengths`. The rows of a client are in order of (user, item). `multiple` pads each bucket's
    client axis to a multiple of the number of devices with clients of weight 0, ids from the number
    of clients on. A client without train rows has weight 0 and keeps its users. Beside them lie the
    items' domains and, `by_time`, the same rows in order of time, for methods that read them.

    With another `before` than VALID the buckets hold the same clients, with all their rows of the
    splits before it, and are as wide as that takes.

    Raises DataError if `split` or `client` is missing or a user has no client.
    """
    num_users, num_items = dataset.num_users, dataset.num_items
    rows = dataset.interactions
    ids, client = np.unique(owners(dataset), return_inverse=True)  # client [U]
    user = rows["user"].to_numpy()
    train, held = ((rows["split"] < part).to_numpy() for part in (VALID, before))
    of_clients = lambda where: np.bincount(client, count(user, num_users, where)).astype(int)
    sizes, counts = of_clients(train), of_clients(held)
    by_size = np.lexsort((ids, sizes))
    place = np.argsort(by_size)[client]  # [U] of each user's client among the sorted ones
    users = np.argsort(place, kind="stable")
    ids, sizes, counts = ids[by_size], sizes[by_size], counts[by_size]
    owned = np.bincount(place, minlength=len(ids))
    local = np.arange(num_users, dtype=np.int32) - np.repeat(np.cumsum(owned) - owned, owned)
    key = gather(np.argsort(users).astype(np.int32), user)  # rows are sorted by (client, user)

    width = _rounded_up(sizes, best_lengths(sizes, owned) if lengths is None else lengths)
    bounds = [np.searchsorted(width, [n, n + 1]) for n in np.unique(width)]
    padded = lambda number: -(-number // multiple) * multiple
    shapes = [(padded(hi - lo), max(width[lo], counts[lo:hi].max())) for lo, hi in bounds]
    ends = np.cumsum([lines * n for lines, n in shapes])
    # Where each client's line begins if all the buckets' lines lie end to end.
    begin = np.concatenate(
        [
            end - lines * n + n * np.arange(hi - lo)
            for (lo, hi), (lines, n), end in zip(bounds, shapes, ends, strict=True)
        ]
    )
    shift = begin - (np.cumsum(counts) - counts)
    fields = _end_to_end(rows, key, held, local, shift[place[users]], ends[-1])
    del key, train, held

    lines = {}
    for name in list(fields):  # one after another: none is twice in memory for longer than it takes
        parts = np.split(fields.pop(name), ends[:-1])
        shaped = zip(parts, shapes, strict=True)
        lines[name] = [jnp.asarray(part.reshape(shape)) for part, shape in shaped]
    buckets = []
    for number, ((lo, hi), shape) in enumerate(zip(bounds, shapes, strict=True)):
        own, padding = slice(owned[:lo].sum(), owned[:hi].sum()), shape[0] - (hi - lo)
        bucket = {
            "users": _padded(users[own], owned[lo:hi], (shape[0], owned[lo:hi].max()), num_users),
            "client": np.append(ids[lo:hi], len(ids) + np.arange(padding)).astype(np.int32),
            "weight": np.append(sizes[lo:hi], np.zeros(padding)).astype(np.float32),
        }
        bucket |= {name: each[number] for name, each in lines.items()}
        buckets.append(jax.tree.map(jnp.asarray, Clients(**bucket)))
    data = Data(tuple(buckets), history(dataset, before) if by_time else None)
    sizes = Sizes(num_users, num_items, len(ids))
    if "domain" in dataset.items:
        domain = dataset.items["domain"].to_numpy()
        if (below := np.flatnonzero(domain < 0)).size:
            raise DataError(
                f"{dataset.name}, column 'domain': item {below[0]} is of domain "
                f"{domain[below[0]]}; domains count from 0"
            )
        data = data._replace(domain=jnp.asarray(domain, jnp.int32))
        sizes = sizes._replace(domains=int(domain.max()) + 1)
    return data, sizes


def _end_to_end(
    rows: pd.DataFrame,
    key: np.ndarray,
    where: np.ndarray,
    local: np.ndarray,
    shift: np.ndarray,
    size: int,
) -> dict[str, np.ndarray]:
    """What Clients hold of each row, [size], the lines of all clients end to end; 0 for padding.

    The rows of `where` are laid in order of (key, item), the n-th of them at n + shift[its key].
    `key` is a number for each user, `local` [U] that user's row of its client's own table.
    """
    item, users = rows["item"].to_numpy(), len(local)
    fields = {name: np.zeros(size, np.int32) for name in ("user", "item")}
    fields["mask"] = np.zeros(size, bool)
    age = None
    if "timestamp" in rows:
        age = _ages(key, rows["timestamp"].to_numpy(), where, users)
        fields["age"] = np.zeros(size, np.int32)
    done = 0
    for order in sorted_blocks(key, users, item, where):
        at = np.arange(done, done + len(order)) + shift[key[order]]
        fields["user"][at] = local[key[order]]
        fields["item"][at] = item[order]
        fields["mask"][at] = True
        if age is not None:
            fields["age"][at] = age[order]
        done += len(order)
    return fields


def _rounded_up(sizes: np.ndarray, lengths: Sequence[int]) -> np.ndarray:
    """The first of `lengths` that holds each size; the largest size where none does."""
    longest = np.append(lengths, max(sizes.max(), lengths[-1]))
    return longest[np.searchsorted(longest, np.maximum(sizes, 1))]


def history(dataset: Dataset, before: int = VALID) -> History | None:
    """The rows of the splits before `before`: VALID for training, TEST for the final ranking.

    None where the data has no timestamps or positions.
    """
    rows = dataset.interactions
    if "timestamp" not in rows:
        return None
    user, item, time = (rows[c].to_numpy() for c in ("user", "item", "timestamp"))
    held = (rows["split"] < before).to_numpy()
    counts = count(user, dataset.num_users, held)
    if (total := int(counts.sum())) >= 2**31:
        raise DataError(f"{dataset.name}: {total:,} rows to learn from: from 2^31 on, sample users")
    start = np.append(0, np.cumsum(counts)).astype(np.int32)
    users, items = np.empty(start[-1], np.int32), np.empty(start[-1], np.int32)
    times, done = np.empty(start[-1], time.dtype), 0
    for order in sorted_blocks(user, dataset.num_users, time, held):
        at = slice(done, done + len(order))
        users[at], items[at], times[at] = user[order], item[order], time[order]
        done += len(order)
    arrays = users, items, start, np.argsort(times, kind="stable")
    return History(*(jnp.asarray(array, jnp.int32) for array in arrays))


def history_of(data: Data) -> History:
    """The data's history; DataError, with the remedy, where nobody knows the order."""
    if data.history is None:
        raise DataError(
            "the interactions have no column 'timestamp' or 'position', and this method needs the "
            "order of a user's items; add one, a position for the order alone. If they have one, "
            "the rows were packed without it: a method that reads it says so in TRAITS.reads"
        )
    return data.history


def owners(dataset: Dataset) -> np.ndarray:
    """The client of each user, [U]."""
    rows = dataset.interactions
    for column, step in (("split", "split"), ("client", "partition")):
        if column not in rows:
            raise DataError(f"{dataset.name}: no column '{column}'; call {step}(dataset) first")
    owner = np.full(dataset.num_users, -1)
    user, client = rows["user"].to_numpy(), rows["client"].to_numpy()
    for block in slices(len(rows)):
        owner[user[block]] = client[block]
    if (alone := np.flatnonzero(owner < 0)).size:
        raise DataError(
            f"{dataset.name}, column 'user': user {alone[0]} has no interaction and so no client "
            f"({alone.size} such users in all); a core of 1 row per user drops them"
        )
    return owner


def _ages(key: np.ndarray, time: np.ndarray, where: np.ndarray, users: int) -> np.ndarray:
    """How many later rows each row's user has; of equal times the last in the file is newest.

    `key` has a number from 0 to `users` for each user; rows that `where` leaves out have no age.
    """
    ends = np.cumsum(count(key, users, where))
    ages, done = np.empty(len(key), np.int32), 0
    for order in sorted_blocks(key, users, time, where):
        ages[order] = ends[key[order]] - 1 - np.arange(done, done + len(order))
        done += len(order)
    return ages


def _padded(values: np.ndarray, counts: np.ndarray, shape: tuple, fill: int) -> np.ndarray:
    """Runs of `counts` values laid end to end -> one padded line each, int32 `shape`."""
    lines = np.full(shape, fill, np.int32)
    lines[: len(counts)][np.arange(shape[1]) < counts[:, None]] = values
    return lines
